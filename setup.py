"""Package of agenticrec-jax: an LLM recommender agent trained end to end in JAX and Flax."""

import json
import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "agenticrec_jax"
INIT = (Path(__file__).parent / PACKAGE / "__init__.py").read_text(encoding="utf-8")
# In a clone these lie beside the package; installed they lie inside it, so that the wheel has one
# top-level name and a folder "experiments" of a user's own is never in the way.
INSIDE = {f"{PACKAGE}.experiments": "experiments", f"{PACKAGE}.tools_data": "tools_data"}

# Also read by ``agenticrec doctor``, which says what is missing.
EXTRAS = json.loads((Path(__file__).parent / PACKAGE / "extras.json").read_text(encoding="utf-8"))

setup(
    name="agenticrec-jax",
    version=re.search(r'^__version__ = "(.+)"', INIT, re.M)[1],
    description="AgenticRec and RecThinker in JAX: LLM recommender agents trained end to end",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url="https://github.com/agenticrec-jax/agenticrec-jax",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=[f"{PACKAGE}*"]), *INSIDE, f"{PACKAGE}.experiments.configs"],
    package_dir=INSIDE,
    include_package_data=False,
    package_data={
        PACKAGE: ["py.typed", "extras.json"],
        f"{PACKAGE}.evaluation": ["templates/*.html", "templates/*.js"],
        f"{PACKAGE}.tools_data": ["*_sample/*", "tiny_policy/*"],
    },
    entry_points={"console_scripts": ["agenticrec = agenticrec_jax.cli.main:main"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.2",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.30",
        "packaging>=24",
        "transformers>=4.53",
        "tokenizers>=0.21",
        "sentencepiece>=0.2",
        "protobuf>=5.28.3",
        "numpy>=2.0",
        "grain>=0.2.12",
        "array_record>=0.8",
        "absl-py>=2.1",
        "ml-collections>=1.0",
        "pydantic>=2.11",
        "pyyaml>=6.0",
        "safetensors>=0.5",
        "etils[epath]>=1.9",
        "polars>=2.0",
        "rapidfuzz>=3.9",
        "scipy>=1.14",
        "rich>=13.7",
        "tensorboardX>=2.6",
        "matplotlib>=3.9",
        "jinja2>=3.1",
        "chex>=0.1.88",
        "jaxtyping>=0.2.34",
    ],
    extras_require={name: extra["requires"] for name, extra in EXTRAS.items()},
)
