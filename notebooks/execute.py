"""Run every notebook and keep its output: pictures and tables, no progress bars and no widget state.

Widgets show a static picture where there is no kernel, so their state, megabytes of it, need not be kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

_WIDGET = "application/vnd.jupyter.widget-view+json"


def _lasts(output: Any) -> bool:
    """Whether an output says something without a kernel; a widget's static picture then stands for it."""
    data = output.get("data", {})
    return data.pop(_WIDGET, None) is None or "image/png" in data


def main() -> None:
    folder = Path(__file__).parent
    for path in sorted(folder.glob("*.ipynb")):
        print(path.name, flush=True)
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            store_widget_state=False,
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if _lasts(output)]
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
        }
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
