"""Files for clusters, without one: what can be read is read, and what would be started is listed."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from policies.cli import _parser

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "launch" / "cluster"
SBATCH, NETWORK, IMAGE, AWS = (CLUSTER / name for name in ("ray.sbatch", "network.sh", "Dockerfile", "ray-aws.yaml"))
README = (CLUSTER / "README.md").read_text(encoding="utf-8")


def bash(command: str, **env: str) -> subprocess.CompletedProcess:
    clean = {"PATH": os.environ["PATH"], **env}
    return subprocess.run(["bash", "-c", command], cwd=ROOT, env=clean, capture_output=True, text=True, check=False)


def test_the_readme_names_every_file():
    files = {path.name for path in CLUSTER.iterdir()}
    assert {name for name in files if f"`{name}`" in README} == files - {"README.md"}
    assert all((ROOT / path).is_file() for path in re.findall(r"launch/cluster/[\w.-]+", README))


# Shell --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [SBATCH, NETWORK], ids=lambda path: path.name)
def test_shell_can_be_read(path):
    assert bash(f"bash -n {path}").stderr == ""


# Of sbatch's manual: directives that are used here, and what their values look like.
DIRECTIVES = {
    "job-name": r"\w+",
    "nodes": r"\d+",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "exclusive": r"",
    "time": r"(\d+-)?\d+:\d\d:\d\d",
    "signal": r"B:(USR1|TERM)@\d+",
    "requeue": r"",
    "open-mode": r"append|truncate",
    "output": r"[\w.%-]+",
}


def directives(text: str) -> dict[str, str]:
    """As sbatch reads them: from the second line on, up to the first that is neither a comment nor empty."""
    first, *lines = text.splitlines()
    assert first == "#!/bin/bash"
    found = {}
    for line in lines:
        if line.startswith("#SBATCH "):
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            assert name not in found
            found[name] = value
        elif line and not line.startswith("#"):
            break
    return found


def test_directives_of_sbatch_are_known_and_none_comes_too_late():
    text = SBATCH.read_text()
    found = directives(text)
    assert len(found) == text.count("#SBATCH ")
    for name, value in found.items():
        assert re.fullmatch(DIRECTIVES[name], value), name
    assert "trap" in text
    assert found["signal"].split("@")[0].removeprefix("B:") in re.findall(r"^trap '.*' (\w+)$", text, re.MULTILINE)


@pytest.fixture
def slurm(tmp_path):
    """A scontrol that knows three nodes, and a virtual environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text("#!/bin/bash\nprintf 'gpu-0%s\\n' 1 2 3\n")
    (folder / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "gpu-0[1-3]", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT)}
    return job | {"PATH": f"{folder}:{os.environ['PATH']}", "VLA_VENV": str(tmp_path), "VLA_DRY_RUN": "1"}


def started(slurm, command: str, **env: str) -> list[str]:
    done = bash(f"bash {SBATCH} {command}", **slurm, **env)
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("+ srun --nodes=1 --ntasks=1 --overlap ") for line in done.stdout.splitlines()]


def test_a_job_starts_a_head_workers_and_the_command(slurm):
    lines = started(slurm, "vla train moe-10b --workers 24")
    head = "--nodelist=gpu-01 ray start --head --node-ip-address=gpu-01 --port=6379 --num-gpus=8 --disable-usage-stats"
    assert f"{head} --block" in lines
    worker = "ray start --address=gpu-01:6379 --num-gpus=8 --disable-usage-stats --block"
    assert {f"--nodelist=gpu-0{k} {worker}" for k in (2, 3)} <= set(lines)
    assert "--nodelist=gpu-01 vla train moe-10b --workers 24" in lines
    assert len(lines) == 4


def test_a_job_in_a_container(slurm):
    lines = started(slurm, "vla doctor", VLA_CONTAINER="registry/vla", SLURM_GPUS_ON_NODE="4", VLA_NETWORK="tcp")
    assert all(f"--container-image=registry/vla --container-mounts={ROOT}:{ROOT}" in line for line in lines)
    assert sum("--num-gpus=4" in line for line in lines) == 3


@pytest.mark.parametrize(
    ("command", "env", "complaint"),
    [
        ("", {}, "command: came nothing"),
        ("vla doctor", {"VLA_NETWORK": "wifi"}, "network: came 'wifi', expected one of ib, efa, tcp"),
        ("vla doctor", {"VLA_VENV": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_a_job_refuses(slurm, command, env, complaint):
    done = bash(f"bash {SBATCH} {command}", **slurm | env)
    assert done.returncode != 0
    assert complaint in done.stderr


def sourced(argument: str, **env: str) -> dict[str, str]:
    done = bash(f"set -euo pipefail; source {NETWORK} {argument}; env -0", **env)
    assert done.returncode == 0, done.stderr
    return dict(item.split("=", 1) for item in done.stdout.strip("\0").split("\0"))


def test_the_network_is_told():
    ib, efa, tcp = (sourced(name) for name in ("ib", "efa", "tcp"))
    assert (ib["NCCL_NET"], ib["NCCL_IB_HCA"]) == ("IB", "mlx5")
    assert (efa["NCCL_NET_PLUGIN"], efa["FI_PROVIDER"]) == ("ofi", "efa")
    assert efa["LD_LIBRARY_PATH"].split(":")[0] == "/opt/amazon/ofi-nccl/lib"
    assert tcp["NCCL_NET"] == "Socket"
    assert {each["NCCL_SOCKET_IFNAME"] for each in (ib, efa, tcp)} == {"^lo,docker,veth"}
    assert not any(name.startswith("FI_") for name in (*ib, *tcp))


def test_what_is_set_before_stays():
    found = sourced("efa", NCCL_SOCKET_IFNAME="bond0", LD_LIBRARY_PATH="/mine", NCCL_DEBUG="INFO")
    assert (found["NCCL_SOCKET_IFNAME"], found["NCCL_DEBUG"]) == ("bond0", "INFO")
    assert found["LD_LIBRARY_PATH"].endswith(":/mine")


# The image ----------------------------------------------------------------------------------------

INSTRUCTIONS = {"FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, rest) of a Dockerfile; a line that ends with a backslash goes on, comments do not count."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = []
    for line in joined.splitlines():
        name, _, rest = line.partition(" ")
        assert name in INSTRUCTIONS, line
        assert rest.strip(), line
        found.append((name, rest.strip()))
    return found


def test_the_dockerfile_can_be_built_as_far_as_it_can_be_read():
    found = instructions(IMAGE.read_text())
    assert found[0][0] == "FROM"
    stages: list[str] = []
    for name, rest in found:
        if name == "FROM":
            base, stage = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            assert base in stages or re.fullmatch(r"[\w./-]+:[\w.-]+", base), "a base without a version"
            stages.append(stage)
        if name == "COPY":
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources)
        if name == "RUN":
            assert bash(f"bash -n <<'END'\n{rest}\nEND").stderr == ""
            assert "apt-get install" not in rest or "rm -rf /var/lib/apt/lists/*" in rest
            assert not re.search(r"pip install(?!.*-c constraints\.txt)", rest), "not pinned"
    assert stages == ["ib", "efa", "default"]


def test_the_image_has_every_package_of_the_wheel():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    setup = settings["tool"]["setuptools"]
    packages = {setup["package-dir"].get(name, name).replace(".", "/").split("/")[0] for name in setup["packages"]}
    copied = {rest.split()[0] for name, rest in instructions(IMAGE.read_text()) if name == "COPY"}
    assert packages <= copied


@pytest.mark.parametrize("bad", ["RUNN true", "RUN", "FROM ubuntu AS x"])
def test_a_bad_dockerfile_is_found(bad, monkeypatch, tmp_path):
    monkeypatch.setitem(globals(), "IMAGE", tmp_path / "Dockerfile")
    (tmp_path / "Dockerfile").write_text(f"FROM ubuntu:24.04 AS ib\n{bad}\n")
    with pytest.raises(AssertionError):
        test_the_dockerfile_can_be_built_as_far_as_it_can_be_read()


# Ray ----------------------------------------------------------------------------------------------

KEYS = {  # of Ray's cluster configuration, those that are used here
    *("cluster_name", "max_workers", "idle_timeout_minutes", "provider", "auth", "docker", "head_node_type"),
    *("available_node_types", "initialization_commands", "setup_commands", "head_setup_commands"),
    *("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
}


def test_the_cluster_of_ray_is_as_its_launcher_reads_it():
    config = yaml.safe_load(AWS.read_text())
    assert set(config) == KEYS
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert set(types) == {"head", "h100"}
    assert types["h100"]["min_workers"] == types["h100"]["max_workers"] == config["max_workers"] == 32
    assert types["h100"]["resources"]["GPU"] * config["max_workers"] == 256
    for node in types.values():
        assert set(node) <= {"resources", "min_workers", "max_workers", "node_config"}
        own = set(node["node_config"])  # the launcher refuses both
        assert ("NetworkInterfaces" in own) != bool({"SubnetId", "SecurityGroupIds"} & own)
    cards = types["h100"]["node_config"]["NetworkInterfaces"]
    assert [card["NetworkCardIndex"] for card in cards] == list(range(32))
    assert [card["DeviceIndex"] for card in cards] == [0] + 31 * [1]
    assert all(card["Groups"] and card["SubnetId"] for card in cards)
    for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        assert bash(f"bash -n <<'END'\n{command}\nEND").stderr == ""
        assert all((ROOT / path).is_file() for path in re.findall(r"launch/cluster/[\w.-]+", command))


def test_every_command_of_vla_is_one():
    """Those of the README and of the files' comments, by the parser of `vla` itself."""
    texts = [path.read_text().replace("\\\n", " ") for path in (CLUSTER / "README.md", SBATCH, IMAGE, AWS)]
    found = [match for text in texts for match in re.findall(r"(?<![/\w-])vla ((?:train|plan|data) [^`'\"\n#]*)", text)]
    assert len(found) >= 6
    parse = _parser()
    for command in found:
        parse.parse_args(command.split())
