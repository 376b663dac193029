"""The ROS package without ROS: launch files run against a stand-in that records, and everything that is said twice
(README, YAML, package.xml, setup.py) says the same."""

import ast
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import threadpoolctl
import yaml
from vla_drive_ros import interface

from policies.cli import main
from sensors import ros2_topics

ROOT = Path(__file__).resolve().parents[2]
ROS2 = ROOT / "launch" / "ros2"
README = (ROOT / "launch" / "README.md").read_text(encoding="utf-8")


class Stopped(Exception):
    """Arguments were taken; nothing shall be done with them."""


def stop() -> None:
    raise Stopped


class Recorded:
    """Stands in for any class of launch and launch_ros; keeps what it was made with."""

    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs


STAND_INS = {
    "launch": ("LaunchDescription",),
    "launch.actions": ("DeclareLaunchArgument", "SetEnvironmentVariable"),
    "launch.conditions": ("IfCondition",),
    "launch.substitutions": ("LaunchConfiguration",),
    "launch_ros": (),
    "launch_ros.actions": ("LifecycleNode", "Node"),
    "launch_ros.parameter_descriptions": ("ParameterValue",),
}


def entities(monkeypatch, name: str) -> list[Recorded]:
    """What generate_launch_description of a launch file returns; a name the stand-in lacks is an ImportError."""
    for module, classes in STAND_INS.items():
        stand_in = ModuleType(module)
        for kind in classes:
            setattr(stand_in, kind, type(kind, (Recorded,), {}))
        monkeypatch.setitem(sys.modules, module, stand_in)
    description = runpy.run_path(str(ROS2 / "launch" / name))["generate_launch_description"]()
    assert type(description).__name__ == "LaunchDescription"
    return description.args[0]


def of_kind(found: list[Recorded], kind: str) -> list[Recorded]:
    return [entity for entity in found if type(entity).__name__ == kind]


PARAMETERS = {
    interface.DRIVER: interface.DRIVER_PARAMETERS,
    interface.CONTROL: interface.CONTROL_PARAMETERS,
    interface.SIM: interface.SIM_PARAMETERS,
    interface.REPLAY: interface.REPLAY_PARAMETERS,
}
DECLARED = {node: {p.name: p for p in parameters} for node, parameters in PARAMETERS.items()}


@pytest.mark.parametrize(
    ("file", "nodes"),
    [
        ("drive.launch.py", ["driver_node", "control_node"]),
        ("replay.launch.py", ["driver_node", "replay_node"]),
        ("sim.launch.py", ["driver_node", "control_node", "sim_node"]),
    ],
)
def test_launch_file(monkeypatch, file, nodes):
    found = entities(monkeypatch, file)
    started = of_kind(found, "LifecycleNode") + of_kind(found, "Node")
    assert [node.kwargs["executable"] for node in started] == nodes
    declared = {argument.args[0] for argument in of_kind(found, "DeclareLaunchArgument")}
    assert all(argument.kwargs["description"] for argument in of_kind(found, "DeclareLaunchArgument"))
    used = set()
    for node in started:
        assert node.kwargs["package"] == "vla_drive_ros"
        assert node.kwargs["name"] == node.kwargs["executable"]
        files = [file for file in node.kwargs["parameters"] if not isinstance(file, dict)]
        given = dict(next((each for each in node.kwargs["parameters"] if isinstance(each, dict)), {}))
        if "condition" in node.kwargs:
            used.add(node.kwargs["condition"].args[0].args[0])
        assert all(isinstance(f, Recorded) or Path(f).is_file() for f in files)
        assert given.keys() <= DECLARED[node.kwargs["name"]].keys()
        for name, value in given.items():
            assert value.args[0].args == (name,)
            assert value.kwargs["value_type"] is type(DECLARED[node.kwargs["name"]][name].default)
        used |= given.keys() | {f.args[0] for f in files if isinstance(f, Recorded)}
    assert used == declared  # no argument that nothing reads, none read that is not declared
    (profile,) = of_kind(found, "SetEnvironmentVariable")
    assert profile.args[0] == "FASTDDS_DEFAULT_PROFILES_FILE"
    assert Path(profile.args[1]).is_file()


@pytest.mark.parametrize("file", ["drive.launch.py", "replay.launch.py", "sim.launch.py"])
def test_launch_file_for_real(file):
    pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS 2 installation, not as a wheel")
    description = runpy.run_path(str(ROS2 / "launch" / file))["generate_launch_description"]()
    assert len(description.entities) > 3
    assert all(argument.description for argument in description.get_launch_arguments())


def test_the_driver_never_starts_by_itself(monkeypatch):
    for file in ("drive.launch.py", "replay.launch.py", "sim.launch.py"):
        for node in of_kind(entities(monkeypatch, file), "LifecycleNode"):
            assert "autostart" not in node.kwargs


def test_control_comes_with_a_drive_only_if_it_is_asked_for(monkeypatch):
    found = entities(monkeypatch, "drive.launch.py")
    (default,) = (a.kwargs["default_value"] for a in of_kind(found, "DeclareLaunchArgument") if a.args[0] == "control")
    assert default == "false"
    driver, control = of_kind(found, "LifecycleNode")
    assert "condition" not in driver.kwargs
    assert type(control.kwargs["condition"]).__name__ == "IfCondition"


def test_arguments_default_to_what_the_nodes_default_to(monkeypatch):
    for argument in of_kind(entities(monkeypatch, "drive.launch.py"), "DeclareLaunchArgument"):
        if argument.args[0] in DECLARED["driver_node"]:
            assert argument.kwargs["default_value"] == DECLARED["driver_node"][argument.args[0]].default


@pytest.mark.parametrize("node", PARAMETERS)
def test_parameter_file_matches_what_the_node_declares(node):
    text = (ROS2 / "config" / f"{node.removesuffix('_node')}.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)[node]["ros__parameters"]
    assert values == {name: p.default for name, p in DECLARED[node].items()}
    for name, p in DECLARED[node].items():
        assert type(values[name]) is type(p.default)
        limits = f" [{p.low:g} to {p.high:g}]" if p.low is not None else ""
        assert re.search(rf"^ +# {re.escape(p.description + limits)}\n +{name}:", text, re.MULTILINE), name


@pytest.mark.parametrize("file", ["replay.yaml", "sim.yaml"])
def test_overrides_are_of_what_the_other_node_has_and_stay_in_range(file):
    files = yaml.safe_load((ROS2 / "config" / file).read_text(encoding="utf-8"))
    for node in files.keys() - {f"{file.removesuffix('.yaml')}_node"}:
        for name, value in files[node]["ros__parameters"].items():
            if name != "use_sim_time":
                assert DECLARED[node][name].low <= value <= DECLARED[node][name].high


def test_defaults_lie_in_their_ranges():
    for p in (p for parameters in PARAMETERS.values() for p in parameters):
        assert (p.low is None) == isinstance(p.default, (str, bool))
        assert p.low is None or p.low <= p.default <= p.high


def test_readme_table_is_the_interface():
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| (in|out) \| ([^|]+) \|", README, re.MULTILINE)
    driver, control = (*ros2_topics.INPUTS, *interface.OUTPUTS), (*interface.CONTROL_INPUTS, *interface.CONTROL_OUTPUTS)
    topics = (*driver, *control, *interface.CONTROL_OPTIONAL)
    assert rows == [(t.name, t.type, t.direction, t.qos) for t in topics]


def test_readme_says_what_it_must():
    for words in ("research software", "closed course", "safety driver", "shadow mode", "control is possible"):
        assert words in README.lower()
    for name in re.findall(r"(?<=launch/)ros2/[\w./]+\w", README):
        assert (ROOT / "launch" / name).exists(), name


def test_package_is_one_package():
    setup = (ROS2 / "setup.py").read_text(encoding="utf-8")
    manifest = ElementTree.parse(ROS2 / "package.xml").getroot()
    assert manifest.findtext("name") == "vla_drive_ros"
    assert 'NAME = "vla_drive_ros"' in setup
    assert f'version="{manifest.findtext("version")}"' in setup
    assert manifest.findtext("export/build_type") == "ament_python"
    assert (ROS2 / "resource" / "vla_drive_ros").is_file()
    assert "script_dir=$base/lib/vla_drive_ros" in (ROS2 / "setup.cfg").read_text(encoding="utf-8")
    for node, module in re.findall(r"(\w+) = {NAME}\.(\w+):main", setup):
        assert node == module
        functions = [
            f.name
            for f in ast.parse((ROS2 / "vla_drive_ros" / f"{module}.py").read_text()).body
            if isinstance(f, ast.FunctionDef)
        ]
        assert "main" in functions
    assert set(re.findall(r"(\w+) = {NAME}", setup)) == set(PARAMETERS)


def test_manifest_names_every_message_package():
    manifest = ElementTree.parse(ROS2 / "package.xml").getroot()
    depends = {element.text for element in manifest.findall("exec_depend")}
    imported = set()
    for path in (*(ROS2 / "vla_drive_ros").glob("*.py"), *(ROS2 / "launch").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    ros = {
        name
        for name in imported
        if name.endswith(("_msgs", "_interfaces", "_srvs")) or name in ("launch", "launch_ros")
    }
    assert ros | {"rclpy", "rmw_fastrtps_cpp"} == depends


def test_rclpy_is_imported_only_here():
    for folder in ("sensors", "vla", "sim", "policies"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"^\s*(import|from) rclpy", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_shared_memory_profile_is_large_enough_and_is_used():
    root = ElementTree.parse(ROS2 / "config" / "fastdds_shm.xml").getroot()
    space = {"d": "http://www.eprosima.com"}
    transports = {
        t.findtext("d:transport_id", namespaces=space): t for t in root.iter(f"{{{space['d']}}}transport_descriptor")
    }
    used = [t.text for t in root.iterfind(".//d:userTransports/d:transport_id", space)]
    assert set(used) == set(transports)
    shm = next(t for t in transports.values() if t.findtext("d:type", namespaces=space) == "SHM")
    assert int(shm.findtext("d:segment_size", namespaces=space)) == 128 * 2**20


def test_readme_commands_are_commands(monkeypatch):
    """Every `vla` line of the page's code is one that the command takes; what it would do is tested elsewhere."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    said = [line.split("#")[0] for block in blocks for line in block.splitlines() if line.startswith("vla ")]
    lines = [command.split() for line in said for command in line.split("&&")]
    taken = []
    for line in lines:
        words = [word for word in line if word]
        monkeypatch.setattr(
            threadpoolctl, "threadpool_limits", lambda *_, words=words, **__: taken.append(words) or stop()
        )
        with pytest.raises(Stopped):
            main(words[1:])
    assert taken == lines
    assert {tuple(words[:3]) for words in taken} >= {("vla", "ros", "check"), ("vla", "ros", "record")}
