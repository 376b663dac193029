"""The ament_python package `vla_drive_ros`, as colcon builds it."""

from pathlib import Path

from setuptools import setup

NAME = "vla_drive_ros"
HERE = Path(__file__).parent


def files(folder: str) -> list[str]:
    return sorted(path.relative_to(HERE).as_posix() for path in (HERE / folder).iterdir() if path.is_file())


setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", files("launch")),
        (f"share/{NAME}/config", files("config")),
        (f"share/{NAME}/viewers", files("viewers")),
    ],
    install_requires=["setuptools", "vla-drive"],
    zip_safe=False,
    maintainer="vla-drive",
    maintainer_email="vla-drive@users.noreply.github.com",
    description="The vla-drive policies as ROS 2 nodes: driver, control with a safety machine, simulated car, player.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            f"driver_node = {NAME}.driver_node:main",
            f"control_node = {NAME}.control_node:main",
            f"sim_node = {NAME}.sim_node:main",
            f"replay_node = {NAME}.replay_node:main",
        ]
    },
)
