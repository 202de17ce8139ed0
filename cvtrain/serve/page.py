"""The page to drop an image on. It loads nothing from elsewhere, and shows text as text."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>cvtrain</title>
<link rel="icon" href="data:,">
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 40rem;
  padding: 0 1rem; }
h1 { font-size: 1.3rem; }
#drop { display: block; border: 2px dashed #767676; border-radius: 8px; padding: 2rem 1rem; text-align: center;
  cursor: pointer; }
#drop.over, #drop:focus-within { border-color: #0072b2; background: #eef6fb; }
#file { position: absolute; opacity: 0; width: 1px; height: 1px; }
#shown { display: block; max-width: 100%; max-height: 20rem; margin: 1rem auto; }
#status { min-height: 1.5rem; }
.error { color: #a30000; }
table { width: 100%; border-collapse: collapse; }
td { padding: .2rem .4rem; overflow-wrap: anywhere; }
td.bar { width: 45%; }
td.bar div { background: #0072b2; height: .8rem; border-radius: 2px; }
td.prob { text-align: right; font-variant-numeric: tabular-nums; width: 5rem; }
@media (prefers-color-scheme: dark) {
  body { color: #eee; background: #181818; }
  #drop.over, #drop:focus-within { background: #10293a; border-color: #56b4e9; }
  td.bar div { background: #56b4e9; }
  .error { color: #ff9a9a; }
}
</style>
</head>
<body>
<main>
<h1>What is in this image?</h1>
<label id="drop" for="file">Drop an image here, or click to choose one
<input id="file" type="file" accept="image/*"></label>
<img id="shown" alt="the image that was sent" hidden>
<p id="status" role="status" aria-live="polite"></p>
<table id="results" hidden><caption hidden>classes and probabilities</caption><tbody></tbody></table>
</main>
<script>
"use strict";
const find = (id) => document.getElementById(id);
const drop = find("drop"), file = find("file"), shown = find("shown"), status_ = find("status");
const results = find("results"), rows = results.tBodies[0];
let number = 0;
function say(text, isError) {
  status_.textContent = text;
  status_.className = isError ? "error" : "";
}
function cell(row, name, text) {
  const made = row.insertCell();
  made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}
function show(predictions) {
  rows.replaceChildren();
  for (const each of predictions) {
    const row = rows.insertRow();
    cell(row, "name", each.class);
    const bar = document.createElement("div");
    bar.style.width = 100 * each.probability + "%";
    cell(row, "bar").append(bar);
    cell(row, "prob", (100 * each.probability).toFixed(1) + " %");
  }
  results.hidden = false;
}
async function send(image) {
  const own = ++number;
  results.hidden = true;
  if (shown.src) URL.revokeObjectURL(shown.src);
  shown.hidden = true;
  shown.src = URL.createObjectURL(image);
  say("looking ...", false);
  try {
    const answer = await fetch("predict", {
      method: "POST", body: image, headers: {"Content-Type": "application/octet-stream"}});
    const content = await answer.json();
    if (own !== number) return;
    if (answer.ok) {
      say("", false);
      show(content.predictions);
    } else say(content.error, true);
  } catch (error) {
    if (own === number) say("The server did not answer. Is it running, and is the image small enough?", true);
  }
}
shown.addEventListener("load", () => { shown.hidden = false; });
file.addEventListener("change", () => { if (file.files[0]) send(file.files[0]); });
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
drop.addEventListener("dragover", () => drop.classList.add("over"));
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  drop.classList.remove("over");
  if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
});
</script>
</body>
</html>
"""
