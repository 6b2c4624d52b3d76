// Colour scales of our own: luminance rises or falls steadily, so they read without colour vision and in print.

const STOPS = {
  light: ["#fcfcfa", "#e2f0e6", "#acdccb", "#63bcc0", "#2f8eb8", "#2b5fa3", "#2f3380", "#1d1147"],
  dark: ["#15181f", "#1f2a4d", "#22507f", "#1f7a8c", "#35a37f", "#82c462", "#d3da56", "#fff3a8"],
};
const LEVELS = 256;

function parseHex(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

const toLinear = (c) => (c <= 0.04045 * 255 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
const luminance = ([r, g, b]) => 0.2126 * toLinear(r) + 0.7152 * toLinear(g) + 0.0722 * toLinear(b);

// 256 colours between the stops: as bytes for images, as CSS strings, and the ink that reads on each.
function buildScale(stops) {
  const anchors = stops.map(parseHex);
  const rgb = new Uint8ClampedArray(LEVELS * 3);
  const css = [];
  const inverted = new Uint8Array(LEVELS);
  const paper = luminance(anchors[0]) > 0.5;
  for (let i = 0; i < LEVELS; i++) {
    const at = (i / (LEVELS - 1)) * (anchors.length - 1);
    const k = Math.min(Math.floor(at), anchors.length - 2);
    const colour = anchors[k].map((c, j) => Math.round(c + (anchors[k + 1][j] - c) * (at - k)));
    rgb.set(colour, i * 3);
    css.push(`rgb(${colour.join(",")})`);
    // Contrast of black and of white ink against this colour (WCAG), the better one wins.
    const light = luminance(colour);
    const darkInk = (light + 0.05) / 0.05 > 1.05 / (light + 0.05);
    inverted[i] = darkInk === paper ? 0 : 1;
  }
  return { rgb, css, inverted };
}

const SCALES = { light: buildScale(STOPS.light), dark: buildScale(STOPS.dark) };

// A value on a logarithmic or linear range → 0…255.
function levelOf(value, range) {
  if (!(value > 0) && range.log) return 0;
  const at = range.log
    ? Math.log(value / range.lo) / Math.log(range.hi / range.lo)
    : (value - range.lo) / (range.hi - range.lo || 1);
  return Math.max(0, Math.min(LEVELS - 1, Math.round(at * (LEVELS - 1))));
}

// For uint8 arrays: code → level once per range, instead of a logarithm per cell.
function levelTable(lut, range, unit) {
  return Uint8Array.from(lut, (value) => levelOf(value / unit, range));
}

// The host's theme: JupyterLab and VS Code say it on <body>, a page follows the system.
function hostIsDark() {
  const { dataset } = document.body;
  if (dataset.jpThemeLight) return dataset.jpThemeLight === "false";
  if (dataset.vscodeThemeKind) return !dataset.vscodeThemeKind.includes("light");
  return window.matchMedia("(prefers-color-scheme: dark)").matches;
}

// Calls back when the theme changes; returns a function that stops watching.
function watchTheme(callback) {
  const media = window.matchMedia("(prefers-color-scheme: dark)");
  const observer = new MutationObserver(callback);
  observer.observe(document.body, {
    attributes: true,
    attributeFilter: ["data-jp-theme-light", "data-vscode-theme-kind", "class"],
  });
  media.addEventListener("change", callback);
  return () => {
    observer.disconnect();
    media.removeEventListener("change", callback);
  };
}
