"""Packaging. `make setup` installs this into a virtual environment of the project's own."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "megatron-core>=0.16.1,<0.20",
    "torch>=2.9",  # whose launcher can leave SIGTERM to us
    "transformers>=4.57,<5",  # the newest line that NeMo-Aligner's stack accepts
    "tokenizers",
    "safetensors>=0.5",
    "datasets>=3",
    # antlr 4.9 is what hydra-core 1.3 (extra rlvr) needs; the other choices are newer.
    "math-verify[antlr4_9_3]>=0.9,<0.10",
    "numpy>=2",
    "omegaconf>=2.3",
    "httpx>=0.27",
    "huggingface_hub>=0.30",
    "jinja2>=3.1",
    "matplotlib>=3.8",
    "psutil",  # megatron-core's checkpoint writer needs it and doesn't say so
    "rich>=13",
    "tensorboard>=2.16",
    "xxhash>=3.4",
]

setup(
    name="megatron-bar",
    version="0.1.0",
    description="Branch, Adapt, Route: modular post-training of OLMo models on Megatron-Core",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["megatron_bar", "megatron_bar.*"]),
    package_data={"megatron_bar": ["analysis/templates/*", "evaluation/suites/*.yaml",
                                   "launch/slurm/templates/*"]},
    install_requires=CORE,
    extras_require={
        "test": ["pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "ruff>=0.9"],
        # One of its tasks needs another antlr than math-verify has above, and vLLM brings a torch:
        # docs/evaluation.md says how to give lm-eval an environment of its own.
        "eval": ["lm-eval[hf,ifeval]==0.4.13"],
        # What NeMo-Aligner 0.7.0 runs with; its own metadata leaves these pins out. The second line
        # and what follows is imported by nemo_toolkit, which names it in an extra it can't resolve.
        "rlvr": [
            "nemo-aligner==0.7.0", "nemo_toolkit==2.4.1", "lightning==2.4.0", "hydra-core==1.3.2",
            "pangu==4.0.6.1", "jieba", "opencc", "braceexpand", "webdataset", "h5py", "ijson",
            "sacrebleu", "rouge_score", "sentencepiece", "einops", "torchmetrics", "pandas",
            "flask", "requests",
        ],
    },
    entry_points={"console_scripts": ["megatron-bar = megatron_bar.cli:main"]},
)
