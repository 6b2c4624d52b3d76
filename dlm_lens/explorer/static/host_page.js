// Host: a page of its own. The data lie in the page; keys work wherever the focus is.

async function start() {
  const bundle = JSON.parse(document.getElementById("dl-manifest").textContent);
  const text = atob(document.getElementById("dl-payload").textContent.trim());
  const payload = Uint8Array.from(text, (c) => c.charCodeAt(0));
  const { app } = await mount(document.getElementById("dl-host"), bundle, payload);
  document.addEventListener("keydown", (event) => {
    if (!app.root.contains(event.target)) app.key(event);
  });
  document.body.dataset.ready = "true";
}

start().catch((error) => {
  document.getElementById("dl-host").textContent = `The explorer could not be shown: ${error.message}`;
  throw error;
});
