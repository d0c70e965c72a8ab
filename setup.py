"""Build the package from settings.ini, the one place where its version and requirements stand."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
PYTHONS = ("3.10", "3.11", "3.12")  # tried; the lowest has to be settings.ini's min_python

config = ConfigParser(delimiters=["="])
config.read(ROOT / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
# The name of an extra is written with hyphens (PEP 685).
extras = {key.removesuffix("_requirements").replace("_", "-"): value.split() for key, value in settings.items() if key.endswith("_requirements")}


def description() -> str:
    """The README without pictures, and without links to files that an index of packages does not have."""
    text = re.sub(r"!\[[^]]*\]\((?!http)[^)]*\)\n*", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    return re.sub(r"\[([^]]*)\]\((?!http)[^)]*\)", r"\1", text)


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=description(),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=settings["keywords"].split(),
    classifiers=[
        "Development Status :: 3 - Alpha",
        f"Intended Audience :: {settings['audience']}",
        f"Natural Language :: {settings['language']}",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        *(f"Programming Language :: Python :: {version}" for version in PYTHONS),
    ],
    project_urls={"Paper": "https://arxiv.org/abs/2409.14538"},
    # The paper's numbers, which `compare` sets beside ours, go with the package.
    packages=["hmdc", "hmdc.paper"],
    package_dir={"hmdc.paper": "data/paper"},
    package_data={"hmdc.paper": ["*.csv"]},
    entry_points={"console_scripts": [settings["console_scripts"]]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    zip_safe=False,
)
