"""Packaging of pyrobnn; the settings of the tools are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).parent / "README.md"

DEPENDENCIES = [
    "torch>=2.6",  # torch.load reads weights only by default, torch.func is stable
    "torchvision>=0.21",  # the release that belongs to torch 2.6
    "pyro-ppl>=1.9",  # ELBO modules with settings.context(module_local_params=True)
    "numpy>=1.26",
    "lazy-loader>=0.4",  # public names from __init__.pyi, imported when first used
    # ArviZ 1.x needs Python 3.12 and has another interface; views/arviz.py speaks both.
    'arviz>=0.20,<1; python_version < "3.12"',
    'arviz[matplotlib,h5netcdf]>=1.0; python_version >= "3.12"',
    "matplotlib>=3.8",
    "pillow>=10.3",  # pictures of image folders; 16-bit grey as such
    "h5netcdf>=1.3",
    "safetensors>=0.4.4",  # empty tensors
    "xarray>=2025.8",  # netCDF in memory
    "platformdirs>=4.0",  # the cache folder of named data
    "scikit-learn>=1.4",
    "jinja2>=3.1",  # report.html
    "typer>=0.12.4",  # options of type `Path | None`
    "rich>=13.0",
]

EXTRAS = {
    "dev": [
        "pytest>=8.2",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",  # the suite on all cores
        "import-linter>=2.1",  # the floors of the package, checked
        "ruff>=0.6",
        "mypy>=1.11",
        "hypothesis>=6.100",  # random inputs for the tests of files and plans
        "mkdocs-material>=9.5",  # the documentation: make docs
        "mkdocstrings[python]>=0.26",  # its API pages, from the docstrings
        "scipy>=1.11",  # intervals in the tables of benchmarks/
        "torchmetrics>=1.3",  # only the oracle of the tests of pyrobnn.metrics
        "torch-pruning>=1.5,<2",  # only the oracle of the tests of pyrobnn.channels
    ],
    "notebooks": ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"],
    "timm": ["timm>=1.0"],  # benchmarks/any_net.py: every CNN family, what of it can be cut
    "export": [  # pyrobnn export --format onnx
        "onnx>=1.17",
        "onnxscript>=0.2",
        "onnxruntime>=1.19",  # what is written is run before it is kept
    ],
}

EXTRAS["dev"] += EXTRAS["export"]  # what the tests of exports need

setup(
    name="pyrobnn",
    version="0.1.0",
    description="Bayesian compression of convolutional networks on Pyro: smaller tensors, measured, with a posterior",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["pyrobnn", "pyrobnn.*"]),
    package_data={"pyrobnn": ["py.typed", "*.pyi", "report/templates/*"]},
    install_requires=DEPENDENCIES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["pyrobnn = pyrobnn.__main__:main"]},
    zip_safe=False,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
