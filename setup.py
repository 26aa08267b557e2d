"""Reads the metadata from settings.ini, which holds it once."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def _needs(key: str) -> list[str]:
    return cfg.get(key, "").split()


optional = (
    *("openvino", "download", "parquet", "oct", "onnx", "app", "sr", "tune"),
    *("accelerate", "tensorboard", "mlflow", "wandb", "docs"),
)
extras = {name: _needs(f"{name}_requirements") for name in ("test", *optional)}
extras["all"] = [need for name in optional if name != "docs" for need in extras[name]]
# OpenVINO stays apart: it is large, and the tests of it need it alone.
extras["dev"] = _needs("dev_requirements") + [
    need for name in ("test", *optional) if name != "openvino" for need in extras[name]
]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license=cfg["license"],
    keywords=cfg["keywords"],
    python_requires=f">={cfg['min_python']},<3.14",
    packages=find_packages(include=["octfast", "octfast.*"]),
    package_data={"octfast": ["py.typed", "assess/report/templates/*", "deploy/*/static/*"]},
    install_requires=_needs("requirements"),
    extras_require=extras,
    entry_points={"console_scripts": _needs("console_scripts")},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
