"use strict";

// One panel per model: a form, its examples and its result. Results are HTML of the server, which
// escapes every value; the policy of the page runs no script but this one.

const maxBytes = Number(document.body.dataset.maxBytes);
const panels = [...document.querySelectorAll(".panel")].map(createPanel);
const tabs = [...document.querySelectorAll("[role=tab]")];

tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => selectTab(index));
  tab.addEventListener("keydown", (event) => {
    const last = tabs.length - 1;
    const targets = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: last };
    if (!(event.key in targets)) return;
    event.preventDefault();
    const target = (targets[event.key] + tabs.length) % tabs.length;
    selectTab(target);
    tabs[target].focus();
  });
});
if (panels.length) selectTab(0);

function selectTab(index) {
  tabs.forEach((tab, number) => {
    tab.setAttribute("aria-selected", String(number === index));
    tab.tabIndex = number === index ? 0 : -1;
  });
  tabs[index]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  panels.forEach((panel, number) => (panel.section.hidden = number !== index));
  panels[index].showExamples();
}

function createPanel(section) {
  const form = section.querySelector("form");
  const { text, images, number } = form.elements;
  const uploads = form.querySelector(".uploads");
  const output = section.querySelector(".output");
  const maxImages = Number(images.dataset.max);
  let files = []; // {name, content: base64}
  let loadsExamples = true;

  function setFiles(values) {
    files = values;
    uploads.replaceChildren(
      ...files.map((file, index) => {
        const remove = createElement("button", { type: "button", textContent: "\u00d7" });
        remove.setAttribute("aria-label", `Remove ${file.name}`);
        remove.addEventListener("click", () => {
          setFiles(files.filter((_, other) => other !== index));
          (uploads.querySelector("button") ?? images).focus();
        });
        return createElement("li", {}, createThumbnail(file), file.name, remove);
      }),
    );
  }

  images.addEventListener("change", async () => {
    const added = await Promise.all([...images.files].map(readFile));
    images.value = ""; // the same file can be chosen again
    setFiles(maxImages > 1 ? [...files, ...added] : added);
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const request = { text: text.value, images: files };
    if (number?.value) request.num_images = Number(number.value);
    setBusy(section, true);
    const clock = startClock(section);
    try {
      const event = await send(section.dataset.url, request, (status) => showStatus(section, status));
      if (event.error) showError(output, event.error);
      else showResult(output, event);
    } catch {
      showError(output, "The server does not answer: start polymuse demo again.");
    }
    clearInterval(clock);
    setBusy(section, false);
    output.focus({ preventScroll: true });
    if (matchMedia("(max-width: 56rem)").matches) output.scrollIntoView({ block: "start" });
  });

  async function showExamples() {
    if (!loadsExamples) return;
    loadsExamples = false;
    const response = await fetch(`${section.dataset.url}/examples`);
    if (!response.ok) return;
    const examples = await response.json();
    section.querySelector(".examples").hidden = examples.length === 0;
    section.querySelector(".examples ul").replaceChildren(
      ...examples.map((example, index) => {
        const thumbs = createElement("span", { className: "thumbs" });
        thumbs.classList.toggle("single", !example.text);
        thumbs.append(...example.images.map(createThumbnail));
        const button = createElement("button", { type: "button" }, thumbs, example.text);
        if (!example.text) button.setAttribute("aria-label", `Example ${index + 1}`);
        button.addEventListener("click", () => {
          text.value = example.text;
          if (number) number.value = "";
          setFiles(example.images);
          form.requestSubmit();
        });
        return createElement("li", {}, button);
      }),
    );
  }

  return { section, showExamples };
}

// Send a request; `onStatus` receives its progress. Returns the last event.
async function send(url, request, onStatus) {
  const body = JSON.stringify(request);
  if (body.length > maxBytes) {
    return { error: `The images have more than ${maxBytes / 2 ** 20} MB: choose fewer or smaller ones.` };
  }
  const headers = { "Content-Type": "application/json" };
  const response = await fetch(url, { method: "POST", headers, body });
  if (!response.ok) return response.json();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the answer is incomplete");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const event of lines.map((line) => JSON.parse(line))) {
      if (!("status" in event)) return event;
      onStatus(event.status);
    }
  }
}

function setBusy(section, busy) {
  section.querySelectorAll(".submit, .examples button").forEach((button) => (button.disabled = busy));
  section.querySelector(".progress").hidden = !busy;
  section.querySelector(".output").classList.toggle("stale", busy);
  section.querySelector(".output").setAttribute("aria-busy", String(busy));
}

function startClock(section) {
  const start = performance.now();
  const clock = section.querySelector(".clock");
  const show = () => (clock.textContent = `${Math.floor((performance.now() - start) / 1000)} s`);
  showStatus(section, "Sending");
  show();
  return setInterval(show, 250);
}

function showStatus(section, status) {
  section.querySelector("[role=status]").textContent = status;
}

function showError(output, sentence) {
  const failure = createElement("p", { className: "failure", textContent: sentence });
  failure.setAttribute("role", "alert");
  output.replaceChildren(failure);
}

function showResult(output, { html, article }) {
  output.innerHTML = html;
  if (!article) return;
  const save = createElement("button", { type: "button", className: "save" }, "Save article.html");
  save.addEventListener("click", () => {
    // Not text/html: the browser saves the file and never opens it as a page of this server.
    const url = URL.createObjectURL(new Blob([article], { type: "application/octet-stream" }));
    createElement("a", { href: url, download: "article.html" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });
  output.append(save);
}

function createElement(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// A preview; formats that the browser does not show, such as TIFF, leave an empty box.
function createThumbnail(file) {
  return createElement("img", { src: `data:;base64,${file.content}`, alt: "" });
}

function readFile(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => {
      resolve({ name: file.name, content: reader.result.split(",")[1] ?? "" });
    });
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
