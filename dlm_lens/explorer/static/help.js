// The list of keys, opened by "?" or its button; Escape closes it.

const KEYS = [
  [["←", "→"], "one step back or on; with Shift ten steps"],
  [["Home", "End"], "first or last step"],
  [["Space"], "play or pause"],
  [["a"], "mean of all heads"],
  [["[", "]"], "follow the previous or next token"],
  [["Esc"], "let go of the followed token"],
  [["↑", "↓", "←", "→"], "in the grid of heads: choose the layer and the head"],
  [["Tab"], "from control to control"],
  [["?"], "this list"],
];
const MOUSE = [
  ["click a token", "follow it"],
  ["click a head, or a layer's number", "look at that head, or at the mean of the layer's heads"],
  ["click or drag over the steps", "go to a step"],
  ["Shift-click on the columns over the run", "follow a position"],
];

function makeHelp() {
  const keys = KEYS.map(([names, what]) => [el("dt", {}, ...names.map((name) => el("kbd", {}, name))), el("dd", {}, what)]);
  const mouse = MOUSE.map(([act, what]) => [el("dt", {}, act), el("dd", {}, what)]);
  const close = el("button", { type: "button", class: "dl-button dl-wide", onclick: () => dialog.close() }, "Close");
  const dialog = el(
    "dialog",
    { class: "dl-help", "aria-label": "Keys" },
    el("h3", {}, "Keys"),
    el("dl", {}, ...keys.flat()),
    el("h3", {}, "Mouse"),
    el("dl", {}, ...mouse.flat()),
    close,
  );
  // Keys pressed in the dialog are not for the views; the browser itself closes it on Escape.
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "?") dialog.close();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  return dialog;
}

// The button in the header; gives the function that opens the list.
function addHelp(root) {
  const dialog = makeHelp();
  const open = () => dialog.open || dialog.showModal();
  const button = el("button", { type: "button", class: "dl-button", title: "Keys (?)", "aria-label": "Keys (?)", "aria-haspopup": "dialog", onclick: open }, "?");
  root.querySelector(".dl-header .dl-tools").append(button);
  root.append(dialog);
  return open;
}
