"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const votes = {};
let current = 0;
let saved = true;
const part = (id) => document.getElementById(id);

function turn() {
  const view = Number(part("turn").value);
  for (const side of ["left", "right"]) part(side).src = data.trials[current][side][view];
}

function show(index) {
  current = Math.min(Math.max(index, 0), data.trials.length - 1);
  const trial = data.trials[current];
  part("prompt").textContent = trial.prompt;
  part("position").textContent = `${current + 1} of ${data.trials.length}, ${Object.keys(votes).length} voted`;
  part("turn").max = trial.left.length - 1;
  part("turn").value = 0;
  for (const choice of ["left", "same", "right"]) {
    part(`choose-${choice}`).classList.toggle("chosen", votes[current] === choice);
  }
  turn();
}

function choose(choice) {
  votes[current] = choice;
  saved = false;
  show(current + 1);
}

function save() {
  const { version, seed, trials_sha256 } = data;
  const text = JSON.stringify({ version, seed, trials_sha256, votes }, null, 1) + "\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "votes.json";
  link.click();
  saved = true;
}

for (const choice of ["left", "same", "right"]) part(`choose-${choice}`).onclick = () => choose(choice);
part("turn").oninput = turn;
part("back").onclick = () => show(current - 1);
part("next").onclick = () => show(current + 1);
part("save").onclick = save;
document.onkeydown = (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const choice = { 1: "left", 2: "same", 3: "right" }[event.key];
  if (choice) choose(choice);
};
window.onbeforeunload = (event) => {
  if (!saved) event.preventDefault();
};
show(0);
