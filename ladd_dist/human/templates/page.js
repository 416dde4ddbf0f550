"use strict";
(() => {
const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const trials = data.trials;
const STORE = "picture-comparison-" + data.page;
const CHOICES = { ArrowLeft: "left", ArrowDown: "tie", ArrowRight: "right" };
const TINY = 256;
const WORDS = {
  quality: { title: "Image quality", ask: "Which picture looks better?",
    text: "Look at the pictures alone: sharp and clean, natural, pleasing. What they should show does not matter, and is not told." },
  alignment: { title: "Prompt alignment", ask: "Which picture shows this better?",
    text: "Read the sentence above the pictures. The better one shows more of what it says: things, numbers, colours, positions, style. How beautiful it is does not matter." },
};
const questions = [...new Set(trials.map(trial => trial.question))];

let state = { rater: "", answers: {} };
let at = 0;          // the trial that is shown
let shown = null;    // the trial whose pictures can be seen, and may be answered
let keeps = true;

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE));
    if (kept) state = kept;
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch { keeps = false; }
}

function keep() {
  try { localStorage.setItem(STORE, JSON.stringify(state)); } catch { keeps = false; }
}

const answered = () => trials.filter(trial => state.answers[trial.id]).length;
const firstOpen = () => {
  const open = trials.findIndex(trial => !state.answers[trial.id]);
  return open < 0 ? trials.length : open;
};
const ofQuestion = question => trials.filter(trial => trial.question === question);

function view(name) {
  for (const section of document.querySelectorAll("main")) section.hidden = section.id !== name;
  shown = null;
  scrollTo(0, 0);
}

function start() {
  view("start");
  $("parts").replaceChildren(...questions.map(question => {
    const item = document.createElement("li");
    item.textContent = `${WORDS[question].ask} (${ofQuestion(question).length} pairs)`;
    return item;
  }));
  $("unkept").hidden = keeps;
  $("rater").value = state.rater;
  $("begin").textContent = answered() ? `Go on after ${answered()}` : "Begin";
}

function part(question) {
  view("part");
  $("part-number").textContent = `Part ${questions.indexOf(question) + 1} of ${questions.length}`;
  $("part-title").textContent = WORDS[question].ask;
  $("part-text").textContent = WORDS[question].text;
  $("go").focus();
}

/* Both pictures of a trial, decoded: neither may be seen before the other. */
const decoded = new Map();
function pictures(index) {
  const trial = trials[index];
  if (!trial) return null;
  if (!decoded.has(trial.id)) {
    const both = ["left", "right"].map(async side => {
      const image = new Image();
      image.alt = side === "left" ? "Picture A" : "Picture B";
      image.src = $(trial[side]).textContent;
      await image.decode();
      return image;
    });
    decoded.set(trial.id, Promise.all(both));
  }
  return decoded.get(trial.id);
}

/* Arrange the two so that they are as large as they can be; tiny ones by whole factors, so that pixels stay squares. */
function fit() {
  const images = [...document.querySelectorAll("#stage img")];
  if (images.length < 2) return;
  const { clientWidth: width, clientHeight: height } = $("stage");
  const beside = [width / 2 - 6, height - 28], stacked = [width - 28, height / 2 - 4];
  const scale = (image, [w, h]) => Math.min(w / image.naturalWidth, h / image.naturalHeight);
  const smaller = box => Math.min(...images.map(image => scale(image, box)));
  const box = smaller(stacked) > smaller(beside) ? stacked : beside;
  $("stage").classList.toggle("stacked", box === stacked);
  for (const image of images) {
    const factor = scale(image, box), tiny = Math.max(image.naturalWidth, image.naturalHeight) <= TINY;
    const used = tiny && factor > 1 ? Math.floor(factor) : factor;
    image.style.width = `${image.naturalWidth * used}px`;
    image.style.height = `${image.naturalHeight * used}px`;
    image.classList.toggle("tiny", tiny);
  }
}

async function show(index) {
  at = index;
  if (index >= trials.length) return end();
  const trial = trials[index], same = ofQuestion(trial.question);
  view("trial");
  $("place").textContent =
    `${WORDS[trial.question].title} · ${same.indexOf(trial) + 1} of ${same.length}`;
  $("bar").setAttribute("aria-valuemax", trials.length);
  $("bar").setAttribute("aria-valuenow", answered());
  $("bar").firstElementChild.style.width = `${100 * answered() / trials.length}%`;
  $("question").textContent = WORDS[trial.question].ask;
  $("prompt").hidden = trial.question !== "alignment";
  $("prompt").textContent = trial.prompt ?? "";
  $("prompt").scrollTop = 0;
  $("back").disabled = index === 0;
  for (const button of document.querySelectorAll("[data-choice]")) {
    button.setAttribute("aria-disabled", true);
    button.setAttribute("aria-pressed", state.answers[trial.id] === button.dataset.choice);
  }
  $("left").replaceChildren();
  $("right").replaceChildren();
  let both;
  try { both = await pictures(index); } catch {
    $("place").textContent = "This browser cannot show the pictures: use another, or a newer one.";
    return;
  }
  if (at !== index || $("trial").hidden) return;
  $("left").replaceChildren(both[0]);
  $("right").replaceChildren(both[1]);
  fit();
  for (const button of document.querySelectorAll("[data-choice]")) button.setAttribute("aria-disabled", false);
  shown = trial;
  for (const [id] of decoded) {
    if (!trials.slice(Math.max(0, index - 1), index + 2).some(near => near.id === id)) decoded.delete(id);
  }
  pictures(index + 1)?.catch(() => {});
}

function answer(choice) {
  if (!shown) return;
  state.answers[shown.id] = choice;
  keep();
  const next = at + 1;
  if (trials[next] && trials[next].question !== trials[at].question && !state.answers[trials[next].id]) {
    at = next;
    return part(trials[next].question);
  }
  show(next);
}

function back() {
  if (at > 0) show(at - 1);
}

const exported = () => JSON.stringify({
  format: "picture comparison answers", version: 1, page: data.page, rater: state.rater, answers: state.answers,
}, null, 1);

function end() {
  view("end");
  const all = answered() === trials.length;
  $("done").textContent = `${answered()} of ${trials.length} answered`;
  $("end-title").textContent = all ? "Thank you, that was all" : "Your answers so far";
  $("resume").textContent = all ? "Back to the last pair" : "Go on";
  $("said").textContent = keeps ? "" : "This browser keeps nothing for this page: save before you close it.";
  $("text").value = exported();
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported()], { type: "application/json" }));
  const rater = state.rater.normalize("NFKD").replace(/[^A-Za-z0-9]+/g, "-").replace(/^-+|-+$/g, "");
  link.download = `answers-${data.page.slice(0, 6)}-${rater || "rater"}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  $("said").textContent = `Saved as ${link.download}, where this browser puts its downloads.`;
}

async function copy() {
  try { await navigator.clipboard.writeText($("text").value); } catch {
    $("text").select();
    if (!document.execCommand("copy")) {
      $("said").textContent = "Select the text below and copy it.";
      return;
    }
  }
  $("said").textContent = "Copied.";
}

function anew() {
  if (!confirm("Delete the answers that this browser keeps, and begin anew?")) return;
  state = { rater: "", answers: {} };
  keep();
  start();
}

$("who").addEventListener("submit", event => {
  event.preventDefault();
  state.rater = $("rater").value.trim();
  if (!state.rater) return;
  keep();
  const first = firstOpen(), trial = trials[first];
  at = first;
  if (trial && ofQuestion(trial.question)[0] === trial) part(trial.question); else show(first);
});
$("go").addEventListener("click", () => show(at));
$("back").addEventListener("click", back);
$("pause").addEventListener("click", end);
$("resume").addEventListener("click", () => show(Math.min(firstOpen(), trials.length - 1)));
$("download").addEventListener("click", download);
$("copy").addEventListener("click", copy);
$("anew").addEventListener("click", anew);
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => answer(button.dataset.choice));
}
addEventListener("keydown", event => {
  if ($("trial").hidden) return;
  if (event.repeat) return event.preventDefault();  // one press is one answer
  if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
  if (event.key === "Backspace") { event.preventDefault(); back(); }
  if (event.target === $("prompt")) return;  // whose arrows scroll it
  if (CHOICES[event.key]) { event.preventDefault(); answer(CHOICES[event.key]); }
});
addEventListener("resize", fit);

load();
start();
})();
