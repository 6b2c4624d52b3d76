// Host: a page of its own. The data lie in the page; keys work wherever the focus is.

async function start() {
  const bundle = JSON.parse(document.getElementById("dl-manifest").textContent);
  const text = atob(document.getElementById("dl-payload").textContent.trim());
  const payload = Uint8Array.from(text, (c) => c.charCodeAt(0));
  const host = document.getElementById("dl-host");
  const { app } = await mount(host, bundle, payload);
  const { controls, measured } = JSON.parse(document.getElementById("dl-policy").textContent);
  attachPolicy(app, controls, measured, null);
  const notice = noticeBoard(app.root);
  notice(app.settings.apply(JSON.parse(host.dataset.settings)));
  app.settings.takeAsDefaults();
  keepInAddress(app, notice);
  if (location.protocol === "about:") addCopyButton(app, "Copy settings", SETTINGS_HINT, () => JSON.stringify(app.settings.all()));
  else addCopyButton(app, "Copy link", "The address of this page as it is now", () => linkTo(app.settings.news()));
  document.addEventListener("keydown", (event) => {
    if (!app.root.contains(event.target)) app.key(event);
  });
  document.body.dataset.ready = "true";
}

start().catch((error) => {
  document.getElementById("dl-host").textContent = `The explorer could not be shown: ${error.message}`;
  throw error;
});
