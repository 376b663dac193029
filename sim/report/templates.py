"""Pages from templates: each one self-contained file, written atomically."""

from pathlib import Path

import jinja2

from sim.report.summary import number
from sim.rollout_log import atomic_path


def write_page(path: Path, template: str, **values: object) -> Path:
    """Render a template of this folder to a file; a name that it asks for and nobody gave is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(number=number, **values)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path
