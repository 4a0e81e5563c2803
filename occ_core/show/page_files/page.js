// The page: figures, and a scene from the page itself, or from the running node that serves it.
"use strict";

const data = JSON.parse($("data").textContent);

function tell(text) {
  Object.assign($("problem"), { hidden: !text, textContent: text });
}

const refuse = (error) => tell(`This page cannot be shown: ${error.message}`);

// Frames as they come: each is asked for when the one before is drawn, so that a slow browser misses some.
function listen() {
  let common;
  const socket = new WebSocket(`ws://${location.host}/frames`);
  socket.onmessage = async (event) => {
    const given = JSON.parse(event.data), text = JSON.stringify({ ...given.scene, frusta: null });
    tell("");
    $("caption").textContent = given.caption;
    if (text === common) { // what is chosen stays, though cameras may turn
      Object.assign(scene, { frames: [given.frame], frusta: given.scene.frusta });
      await refresh();
    } else {
      common = text;
      await openScene({ ...given.scene, frames: [given.frame] });
    }
    socket.send("next");
  };
  socket.onclose = () => {
    tell("The connection to the node's viewer is closed; trying again.");
    setTimeout(listen, 1000);
  };
  socket.onopen = () => tell("Waiting for an answer of the node.");
}

try {
  $("title").textContent = data.title;
  buildFigures(data, $("figures"));
  const opened = data.scene ? openScene(data.scene) : Promise.resolve();
  const drawn = () => (document.body.dataset.loaded_ms = Math.round(performance.now()));
  opened.then(() => requestAnimationFrame(drawn), refuse); // asked for after the first frame's drawing was
  if (data.live) listen();
} catch (error) {
  refuse(error);
}
