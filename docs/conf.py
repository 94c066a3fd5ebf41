"""Configuration of the documentation: ``sphinx-build -W -b html docs build/docs``."""

import pathlib
import sys

# The documentation is that of the checkout around it, whatever version is installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

project = "agenticrec-jax"
author = "the authors of agenticrec-jax"
copyright = "the authors of agenticrec-jax, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["build"]

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "code"  # docstrings write `name` for code
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

html_theme = "furo"
html_title = "agenticrec-jax"
html_show_sphinx = False
html_copy_source = False


def mark_fields(app, what, name, obj, options, lines):
    """Makes an "Attributes:" section of the fields that a dataclass's docstring explains.

    A line ``a, b: text`` explains two fields; napoleon needs an entry for each.
    """
    if what == "property":
        lines[:0] = ["..", ""]  # or napoleon takes "Words: more words" for a type and a text
    fields = set(getattr(obj, "__dataclass_fields__", ()))

    def fields_of(line):
        names = [name.strip() for name in line.partition(":")[0].split(",")]
        return names if ":" in line and set(names) <= fields else []

    first = next((i for i, line in enumerate(lines) if fields_of(line) and i), None)
    if what != "class" or first is None:
        return
    head = [line for line in lines[:first] if line != "Attributes:"]
    entries = []
    for line in lines[first:]:
        if fields_of(line):
            text = line.partition(":")[2]
            entries.append((fields_of(line), [text]))
        else:
            entries[-1][1].append(line.strip())
    lines[:] = [*head, "Attributes:"]
    for names, texts in entries:
        for field in names:
            lines += [
                f"  {field}:{texts[0]}",
                *(f"    {text}" if text else "" for text in texts[1:]),
            ]


def short_arrays(app, what, name, obj, options, signature, returned):
    """Writes ``Array`` and ``ndarray`` in signatures without the modules that they come from."""

    def short(text):
        return text and text.replace("jaxlib._jax.Array", "Array").replace(
            "numpy.ndarray", "ndarray"
        )

    return short(signature), short(returned)


def setup(app):
    app.connect("autodoc-process-docstring", mark_fields, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", short_arrays)
