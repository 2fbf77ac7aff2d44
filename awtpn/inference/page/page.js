// The page: choose or record a clip, send it, show how far it is, and move the player from the drawings.

import { drawOutcome, drawTimeline, drawWords, element, seconds, series, told } from "./draw.js";

const get = id => document.getElementById(id);
const token = document.querySelector("meta[name=page-token]").content;
const player = get("player");

const STAGES = {
  sending: "sending the clip …", listening: "listening: the clip is decoded …", encoding: "encoding: features are made …",
  predicting: "predicting …", drawing: "drawing …",
};
const OUTCOME_NOTES = {
  classification: "The bars show how probable the model finds each class; they add up to 100 %.",
  multilabel: "The bars show how probable the model finds each label; those above the mark are in the answer.",
  regression: "The dots show the values within their range; the dark part is the 90 % prediction interval, where it is known.",
};
const TIMELINE_NOTES = {
  video: "The weights of video say how much each moment of the picture counts; frames with more weight are clearer.",
  audio: "The weights of audio say how much each moment of the sound counts; the waveform is darker where it counts more.",
};
const EVEN = "The dashed line, ×1, is the even share.";
const JUMP = "Click a moment, or move with the arrow keys, to hear and see it.";
const TYPES = { video: ["video/webm", "video/mp4"], audio: ["audio/webm", "audio/mp4", "audio/ogg"] };

let facts = null; // of the model
let clip = null; // the File to predict
let answer = null; // the last answer
let sending = null; // the AbortController of the request that runs
let recorder = null;

// --- The model ----------------------------------------------------------------------------------

async function begin() {
  const response = await fetch("/model");
  if (!response.ok) throw new Error((await response.json()).error);
  facts = await response.json();
  document.title = `Try ${facts.name}`;
  get("name").textContent = facts.name;
  get("lead").textContent = `A model of ${listed(facts.modalities)}: ${facts.task_name}.`;
  const rows = [[facts.task === "classification" ? "Classes" : facts.task === "multilabel" ? "Labels" : "Values", named()]];
  if (facts.trained_on) rows.push(["Trained on", facts.trained_on]);
  for (const [modality, encoder] of Object.entries(facts.encoders)) rows.push([`Features of ${modality}`, encoder]);
  get("facts").replaceChildren(
    ...rows.map(([name, value]) =>
      element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }))),
  );
  const takes = modality => facts.modalities.includes(modality);
  get("clip-part").hidden = !takes("audio") && !takes("video");
  get("words-part").hidden = !takes("text");
  get("limits").textContent = `At most ${facts.most_seconds} s and ${facts.most_bytes / 1e6} MB.`;
  get("record-video").hidden = !takes("video");
  get("record-audio").hidden = !takes("audio");
  if (!navigator.mediaDevices || !window.MediaRecorder) {
    get("record-video").disabled = get("record-audio").disabled = true;
    get("record-note").textContent = "The browser allows recording only at localhost or over https.";
  }
  enable();
}

function named() {
  return facts.names.map((name, i) => (facts.ranges ? `${name} (${facts.ranges[i].join(" to ")})` : name)).join(", ");
}

const listed = words => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);

// --- The clip -----------------------------------------------------------------------------------

function choose(file) {
  fail("");
  if (file.size > facts.most_bytes) {
    fail(`${file.name} has more than ${facts.most_bytes / 1e6} MB: choose a shorter clip, or start awtpn serve with a larger --max_megabytes`);
    return;
  }
  sending?.abort();
  clear();
  clip = file;
  URL.revokeObjectURL(player.src);
  player.srcObject = null;
  player.muted = false;
  player.src = URL.createObjectURL(file);
  player.classList.toggle("sound", file.type.startsWith("audio/"));
  get("player-note").hidden = true;
  get("shown").hidden = false;
  get("clip-name").textContent = `${file.name}, ${(file.size / 1e6).toFixed(2)} MB`;
  enable();
  if (get("words-part").hidden) predict();
}

// A recording of the browser does not say how long it is. The player finds out when it is sent to the end.
player.addEventListener("loadedmetadata", () => {
  if (player.duration !== Infinity) return;
  player.addEventListener("durationchange", () => (player.currentTime = 0), { once: true });
  player.currentTime = 1e7;
});
player.addEventListener("error", () => (get("player-note").hidden = !player.getAttribute("src")));

get("file").addEventListener("change", event => {
  if (event.target.files[0]) choose(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
for (const name of ["dragover", "drop"]) document.addEventListener(name, event => event.preventDefault());
document.addEventListener("dragover", () => get("drop").classList.add("over"));
for (const name of ["dragleave", "drop"]) document.addEventListener(name, () => get("drop").classList.remove("over"));
document.addEventListener("drop", event => {
  if (event.dataTransfer.files[0] && !get("clip-part").hidden && !recorder) choose(event.dataTransfer.files[0]);
});

async function record(kind) {
  fail("");
  let source;
  try {
    source = await navigator.mediaDevices.getUserMedia({ audio: true, video: kind === "video" });
  } catch (error) {
    fail(`The ${kind === "video" ? "camera or microphone" : "microphone"} cannot be used (${error.name}): connect it, and allow it for this page.`);
    return;
  }
  sending?.abort();
  const parts = [], type = TYPES[kind].find(each => MediaRecorder.isTypeSupported(each));
  recorder = new MediaRecorder(source, type ? { mimeType: type } : {});
  const limit = setTimeout(stop, 1000 * facts.most_seconds), started = performance.now();
  const clock = setInterval(() => say(`recording: ${seconds((performance.now() - started) / 1000)}`), 200);
  recorder.addEventListener("dataavailable", event => parts.push(event.data));
  recorder.addEventListener("stop", () => {
    clearTimeout(limit);
    clearInterval(clock);
    source.getTracks().forEach(track => track.stop());
    const made = recorder.mimeType.split(";")[0];
    recorder = null;
    say("");
    enable();
    choose(new File(parts, `recording.${made.split("/")[1].replace("x-matroska", "mkv")}`, { type: made }));
  });
  clear();
  get("shown").hidden = false;
  get("player-note").hidden = true;
  get("clip-name").textContent = "";
  player.classList.toggle("sound", kind === "audio");
  player.removeAttribute("src");
  player.srcObject = source;
  player.muted = true; // or the microphone would hear it
  player.play().catch(() => {});
  recorder.start();
  enable();
  get("stop").focus();
}

function stop() {
  if (recorder?.state === "recording") recorder.stop();
}

get("record-video").addEventListener("click", () => record("video"));
get("record-audio").addEventListener("click", () => record("audio"));
get("stop").addEventListener("click", stop);
get("words").addEventListener("input", enable);
get("predict").addEventListener("click", predict);

function clear() {
  get("answer").hidden = true;
  get("empty").hidden = false;
}

// --- The prediction -----------------------------------------------------------------------------

function enable() {
  const words = !get("words-part").hidden && get("words").value.trim();
  get("predict").disabled = !facts || Boolean(recorder) || Boolean(sending) || !(clip || words);
  get("stop").hidden = !recorder;
  for (const kind of ["video", "audio"])
    get(`record-${kind}`).hidden = Boolean(recorder) || !facts?.modalities.includes(kind);
  get("file").disabled = Boolean(recorder);
  get("busy").hidden = !sending;
}

const say = text => (get("status").textContent = text);

function fail(text) {
  get("error").textContent = text;
  get("error").hidden = !text;
}

async function predict() {
  const own = new AbortController();
  sending = own;
  fail("");
  enable();
  say(STAGES.sending);
  const form = new FormData();
  if (!get("words-part").hidden) form.append("words", get("words").value);
  if (clip) form.append("clip", clip);
  try {
    const response = await fetch("/predict", {
      method: "POST", body: form, headers: { "X-Page-Token": token }, signal: own.signal,
    });
    const last = await lastLine(response);
    if (sending !== own) return;
    if (last.error) fail(last.error);
    else show(last.answer);
  } catch (error) {
    if (error.name !== "AbortError") fail("awtpn serve does not answer: see its terminal, start it again, and reload this page.");
  } finally {
    if (sending === own) {
      sending = null;
      say("");
      enable();
    }
  }
}

// Lines of JSON: stages, which are shown, then the answer or an error.
async function lastLine(response) {
  if (!response.ok) return response.json();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", last = {};
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    text += value;
    const lines = text.split("\n");
    text = lines.pop();
    for (const line of lines) {
      last = JSON.parse(line);
      if (last.waiting) say(`waiting for ${last.waiting} other clip${last.waiting > 1 ? "s" : ""} …`);
      if (last.stage) say(STAGES[last.stage]);
    }
  }
  if (!last.answer && !last.error) throw new Error("the answer ended early");
  return last;
}

function show(found) {
  answer = found;
  get("empty").hidden = true;
  get("answer").hidden = false; // before the timeline is drawn, which measures its width
  get("answer-title").textContent = answer.title;
  get("outcome-note").textContent = OUTCOME_NOTES[answer.task];
  drawOutcome(get("outcome"), answer, facts);
  const missing = Object.entries(answer.missing).map(([modality, cause]) => `Predicted without ${modality}: ${cause}.`);
  get("missing").textContent = missing.join(" ");
  get("missing").hidden = !missing.length;
  get("timeline-part").hidden = !answer.duration;
  if (answer.duration) {
    drawTimeline(get("timeline"), answer, facts);
    const notes = series(answer).map(({ modality }) => TIMELINE_NOTES[modality]);
    const weights = facts.has_weights ? [...notes, ...(notes.length ? [EVEN] : [])] : [NO_WEIGHTS];
    get("timeline-note").textContent = [...weights, JUMP].join(" ");
    get("timeline").setAttribute("aria-valuemax", answer.duration);
    follow();
  }
  get("spoken-part").hidden = !answer.words.length;
  if (answer.words.length) {
    drawWords(get("spoken"), answer, facts);
    get("spoken-note").textContent = facts.has_weights
      ? "The weight of a word says how much it counts among the words; ×1 is the even share." : NO_WEIGHTS;
  }
  get("answer").focus({ preventScroll: true });
}

const NO_WEIGHTS = "This model, a baseline, has no reliability weights.";

// --- The player and the drawings ----------------------------------------------------------------

function jump(time) {
  player.currentTime = Math.max(0, Math.min(time, answer.duration));
  follow();
}

function follow() {
  if (!answer?.duration) return;
  const time = Math.min(player.currentTime, answer.duration), line = get("timeline").querySelector(".head");
  if (line) line.style.left = `${(100 * time) / answer.duration}%`;
  get("readout").textContent = told(answer, time);
  get("timeline").setAttribute("aria-valuenow", time.toFixed(2));
  get("timeline").setAttribute("aria-valuetext", told(answer, time));
}

for (const name of ["timeupdate", "seeked"]) player.addEventListener(name, follow);
function animate() {
  if (!player.paused) follow();
  requestAnimationFrame(animate);
}
requestAnimationFrame(animate);

get("timeline").addEventListener("click", event => {
  const box = get("timeline").getBoundingClientRect();
  jump(((event.clientX - box.left) / box.width) * answer.duration);
  player.play().catch(() => {});
});
get("timeline").addEventListener("keydown", event => {
  const step = Math.min(...series(answer).map(each => each.step), 0.5);
  const moves = { ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageUp: 10 * step, PageDown: -10 * step };
  if (event.key in moves) jump(player.currentTime + moves[event.key]);
  else if (event.key === "Home") jump(0);
  else if (event.key === "End") jump(answer.duration);
  else if (event.key === " " || event.key === "Enter") player.paused ? player.play().catch(() => {}) : player.pause();
  else return;
  event.preventDefault();
});

begin().catch(error => fail(error.message || "awtpn serve does not answer: see its terminal, and reload this page."));
