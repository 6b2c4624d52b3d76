"""Sweeps: many policies, budgets, prompts and seeds, in this process or on a Dask cluster, kept as they finish.

:class:`Grid` says what is measured and cuts it into cells (``grid.py``); a cell is measured by the functions that
:func:`dlm_lens.compare` uses (``cell.py``), kept in a folder by its content (``folder.py``), on the worker that Dask
gives it to (``workers.py``); :class:`Sweep` reads the folder as a table and as lazy traces (``results.py``).
"""

from dlm_lens.sweeps.grid import Grid
from dlm_lens.sweeps.results import Sweep, open_sweep
from dlm_lens.sweeps.running import sweep

__all__ = ["Grid", "Sweep", "open_sweep", "sweep"]
