"""Run every notebook and keep its output: pictures and tables, no progress bars and no widget state.

Where there is no kernel, a picture stands in for a widget, so its state, megabytes of it, need not be kept. Of what
stands in only the picture itself is: every host shows that, while some filter HTML.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

_WIDGET = "application/vnd.jupyter.widget-view+json"


def _lasting(outputs: list[Any]) -> list[Any]:
    """The outputs that say something without a kernel."""
    kept = [output for output in outputs if _WIDGET not in output.get("data", {})]
    for output in kept:
        data = output.get("data", {})
        if "image/png" in data:
            data.pop("text/html", None)
    return kept


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
                cell.outputs = _lasting(cell.outputs)
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
        }
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
