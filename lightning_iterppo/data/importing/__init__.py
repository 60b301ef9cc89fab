"""Somebody's logs into ours: one module a format, and what they share.

`import_logs` is `iterppo import` from Python.
"""

from lightning_iterppo.data.importing.mapping import Mapping, load_mapping
from lightning_iterppo.data.importing.pipeline import FORMATS, import_logs
from lightning_iterppo.data.importing.report import ImportReport

__all__ = ["FORMATS", "ImportReport", "Mapping", "import_logs", "load_mapping"]
