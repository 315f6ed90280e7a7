// The live parts of the page: the picture, the figures, the memory, the camera.
// Everything that comes from a model, a file name or a video is set as text or as the address of a picture.
(() => {
  "use strict";
  const LOOK_MS = 400, CAMERA_FPS = 8, LARGEST_PX = 132, SMALLEST_PX = 48;
  const TIERS = ["#e4572e", "#2b7de9", "#3a9d5d", "#8e5bd0", "#c48a1a"];
  const base = new URL(".", document.baseURI);
  const address = (path) => new URL(path, base).href;
  const byId = (id) => document.getElementById(id);
  let current = null, version = -1, known = new Map(), camera = null;

  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const clock = (seconds) => {
    const whole = Math.floor(seconds);
    const rest = String(whole % 60).padStart(2, "0");
    return whole < 3600 ? `${Math.floor(whole / 60)}:${rest}`
      : `${Math.floor(whole / 3600)}:${String(Math.floor(whole / 60) % 60).padStart(2, "0")}:${rest}`;
  };

  function begin(stream) {
    current = stream; version = -1; known = new Map();
    const view = byId("vco-view");
    view.replaceChildren();
    byId("vco-stats").replaceChildren();
    byId("vco-memory").replaceChildren();
    if (!stream.id) {
      view.append(make("div", "vco-hint", "Choose an example, a video, the camera or images below."));
      return;
    }
    const picture = make("img");
    picture.id = "vco-picture";
    picture.alt = "what is being watched";
    const badge = make("div", "vco-badge", "");
    badge.id = "vco-badge";
    view.append(picture, badge);
    lookAt(stream);
    byId("vco-export-json").href = address(`page/streams/${stream.id}/conversation.json`);
    byId("vco-export-srt").href = address(`page/streams/${stream.id}/conversation.srt`);
  }

  // The picture of a stream never ends, and browsers have few connections for all tabs of a server.
  function lookAt(stream) {
    const picture = byId("vco-picture");
    if (!picture || !stream || !stream.id) return;
    if (stream.kind === "images") picture.src = address(`page/streams/${stream.id}/images.jpg`);
    else if (document.hidden) picture.removeAttribute("src");
    else picture.src = address(`v1/streams/${stream.id}/view`);
  }

  function showStats(live) {
    const box = byId("vco-stats"), status = live.status;
    if (!status) {
      byId("vco-badge").textContent = "images";
      return;
    }
    const factor = status.real_time_factor === null ? null
      : status.real_time_factor * (live.player ? live.player.speed : 1);
    const figures = [
      ["frames in", status.num_frames_in],
      ["seen", status.num_frames_seen],
      ["dropped", status.num_frames_dropped, status.num_frames_dropped > 0],
      ["real-time factor", factor === null ? "–" : factor.toFixed(3), factor > 1],
      ["time to first token", status.first_token_s === null ? "–" : `${(1000 * status.first_token_s).toFixed(0)} ms`],
      ["visual tokens", status.max_tokens === null ? status.num_tokens : `${status.num_tokens} of ${status.max_tokens}`],
    ];
    box.replaceChildren(...figures.map(([name, value, isBad]) => {
      const item = make("span", isBad ? "vco-bad" : "");
      item.append(`${name} `, make("b", "", String(value)));
      return item;
    }));
    const problem = status.problem || (live.player && live.player.problem) || (camera && camera.problem);
    if (problem) box.append(make("span", "vco-problem", problem));
    const player = live.player;
    const lost = player && player.waiting_s !== null ? ` for ${clock(player.waiting_s)}` : "";
    const state = player ? player.state + lost : camera ? "camera" : "live";
    const length = player && player.duration_s ? ` / ${clock(player.duration_s)}` : "";
    const speed = player && player.speed !== 1 ? ` · ${player.speed}×` : "";
    byId("vco-badge").textContent = `${state} · ${clock(status.time_s)}${length}${speed}`;
  }

  function showMemory(live) {
    const memory = live.memory, status = live.status;
    if (!memory || memory.version === version) return;
    version = memory.version;
    const full = current.fullTokens;
    const tierOf = (tokens) => Math.max(0, Math.round(Math.log(full / tokens) / Math.log(4)));
    const colour = (tokens) => TIERS[Math.min(tierOf(tokens), TIERS.length - 1)];
    const box = byId("vco-memory");
    const counts = new Map();
    for (const frame of memory.remembered) counts.set(frame.num_tokens, (counts.get(frame.num_tokens) || 0) + 1);

    const title = make("h3", "", `Memory: ${memory.remembered.length} of ${status.num_frames_seen} frames seen, ` +
      `${status.num_tokens} visual tokens`);
    const budget = make("div", "vco-budget"), used = make("div");
    used.style.width = status.max_tokens ? `${100 * status.num_tokens / status.max_tokens}%` : "100%";
    budget.append(used);
    const legend = make("div", "vco-legend");
    for (const [tokens, count] of [...counts].sort((a, b) => b[0] - a[0])) {
      const item = make("span"), box = make("i");
      box.style.background = colour(tokens);
      item.append(box, `tier ${tierOf(tokens) + 1}: ${count} × ${tokens} tokens`);
      legend.append(item);
    }
    legend.append(make("span", "", `↓ made smaller (${memory.num_demotions} so far)`),
      make("span", "", `forgotten: ${memory.num_forgotten}`));

    const axis = make("div", "vco-axis"), end = Math.max(status.time_s, 1e-3);
    for (const frame of memory.remembered) {
      const tick = make("i");
      tick.style.left = `${100 * frame.time_s / end}%`;
      tick.style.height = `${6 + 15 / (1 + tierOf(frame.num_tokens))}px`;
      tick.style.background = colour(frame.num_tokens);
      axis.append(tick);
    }
    axis.append(make("span", "", "0:00"), make("span", "vco-end", clock(status.time_s)));

    const seen = new Map();
    const figure = (frame) => {
      const element = make("figure", "vco-frame"), tokens = frame.num_tokens;
      const side = SMALLEST_PX + (LARGEST_PX - SMALLEST_PX) * Math.sqrt(tokens / full);
      element.tabIndex = 0;
      element.style.width = `${Math.round(side)}px`;
      element.style.setProperty("--tier", colour(tokens));
      element.dataset.index = frame.index;
      element.dataset.tokens = tokens;
      const state = `${tokens}/${frame.forgotten_at_s === null}`;
      if (known.get(frame.index) !== state) element.classList.add("vco-new");
      seen.set(frame.index, state);
      const picture = make("img");
      picture.src = address(`page/streams/${current.id}/remembered/${frame.index}.jpg`);
      picture.alt = `frame ${frame.index}`;
      element.append(picture, make("figcaption", "", clock(frame.time_s)));
      if (frame.demoted_at_s !== null) element.append(make("span", "vco-mark", "↓"));
      const lines = [`frame ${frame.index} at ${frame.time_s.toFixed(2)} s`,
        `tier ${tierOf(tokens) + 1}: ${tokens} tokens`];
      if (frame.demoted_at_s !== null) {
        lines.push(`entered with ${frame.first_num_tokens}, made smaller at ${frame.demoted_at_s.toFixed(1)} s`);
      }
      if (frame.forgotten_at_s !== null) lines.push(`forgotten at ${frame.forgotten_at_s.toFixed(1)} s`);
      element.append(make("div", "vco-tip", lines.join("\n")));
      return element;
    };
    const lane = make("div", "vco-lane");
    lane.append(...memory.remembered.map(figure));
    const parts = [title, budget, legend, axis, lane];
    if (memory.forgotten.length) {
      const gone = make("div", "vco-lane vco-forgotten");
      gone.append(...memory.forgotten.map(figure));
      parts.push(make("div", "vco-legend", "Forgotten lately"), gone);
    }
    known = seen;
    box.replaceChildren(...parts);
  }

  // Gradio draws the stream's id into the page when another one is opened.
  function follow() {
    const element = byId("vco-stream");
    if (!element || !byId("vco-view")) return;
    const id = element.dataset.stream || "";
    if (current !== null && id === current.id) return;
    stopCamera();
    begin({ id, kind: element.dataset.kind, fullTokens: Number(element.dataset.fullTokens), fps: Number(element.dataset.fps) });
    if (id && current.kind === "camera") startCamera(current);
  }

  async function look() {
    const stream = current;
    if (stream !== null && stream.id) {
      const response = await fetch(address(`page/streams/${stream.id}`)).catch(() => null);
      const live = response && response.ok ? await response.json().catch(() => null) : null;
      if (stream !== current) { /* another one was opened meanwhile */ }
      else if (live) { showStats(live); showMemory(live); }
      else if (response && response.status === 404) {
        byId("vco-badge").textContent = "closed: nothing was done here for too long";
        stopCamera();
      } else if (!response) byId("vco-badge").textContent = "the server does not answer";
    }
    setTimeout(look, LOOK_MS);
  }

  // The camera's pictures go one after another: a slow server gets fewer of them, never a queue.
  async function startCamera(stream) {
    const video = document.createElement("video");
    video.muted = true; video.playsInline = true;
    const mine = { id: stream.id, video, media: null, problem: null };
    camera = mine;
    try {
      // Browsers have cameras for pages over https and of their own machine only.
      if (!navigator.mediaDevices) throw new Error("the page has to come over https, or from localhost");
      mine.media = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } }, audio: false });
    } catch (error) {
      mine.problem = `no camera: ${error.message}`;
      return;
    }
    if (camera !== mine) { mine.media.getTracks().forEach((track) => track.stop()); return; }
    video.srcObject = mine.media;
    await video.play();
    const canvas = document.createElement("canvas");
    while (camera === mine) {
      const began = performance.now();
      canvas.width = video.videoWidth; canvas.height = video.videoHeight;
      canvas.getContext("2d").drawImage(video, 0, 0);
      const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.85));
      const response = blob && await fetch(address(`v1/streams/${mine.id}/frames`),
        { method: "POST", body: blob, headers: { "Content-Type": "image/jpeg" } }).catch(() => null);
      if (response && response.status === 404) break;
      await new Promise((done) => setTimeout(done, Math.max(0, 1000 / Math.max(CAMERA_FPS, stream.fps) - (performance.now() - began))));
    }
    mine.media.getTracks().forEach((track) => track.stop());
  }

  function stopCamera() {
    if (camera && camera.media) camera.media.getTracks().forEach((track) => track.stop());
    camera = null;
  }

  function start() {
    new MutationObserver(follow).observe(document.body, { childList: true, subtree: true });
    document.addEventListener("visibilitychange", () => lookAt(current));
    follow();
    look();
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
