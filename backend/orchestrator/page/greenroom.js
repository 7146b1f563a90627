// The page's only script: it starts a session over REST, joins its room, and shows what goes on in it.
// One state object, one render function; events change the state and render again.

const { ConnectionErrorReason, ConnectionQuality, DisconnectReason, Room, RoomEvent, Track } = window.LivekitClient ?? {};

const LATE_AFTER_MS = 5000; // a warm agent is heard in well under a second; after this the silence needs a word
const LOOK_UP_EVERY_MS = 2000; // how often the house is asked about a call that has no agent
const ANSWER_WITHIN_MS = 10000; // the house answers in milliseconds; this only keeps the page from hanging
const QUIETEST_DB = -55; // an empty meter: about the noise of a quiet room
const LOUDEST_DB = -12; // a full meter: someone who speaks up

const END_REASONS = {
  caller_left: "You left the call.",
  nobody_came: "Nobody joined the call in time, so it was closed.",
  silence: "Nothing was said for a while, so the agent ended the call.",
  client_end: "The call was ended from outside this page.",
  goodbye: "The agent said goodbye.",
  time_limit: "The call reached its time limit.",
  start_timeout: "No agent was free in time. Please try again in a moment.",
  agent_lost: "The agent was lost, and no other could take over.",
  vendor_failed: "The agent’s speech or language service failed.",
  room_lost: "The room was lost.",
  agent_fault: "The agent ran into a fault.",
  shutdown: "The service was stopped.",
};

const AGENT_WORDS = { initializing: "Getting ready", listening: "Listening", thinking: "Thinking", speaking: "Speaking" };

const MICROPHONE_WORDS = { asking: "Asking for the mic", on: "Mic on", muted: "Muted", none: "No mic" };

const MICROPHONE_PROBLEMS = {
  NotAllowedError: "The microphone was refused. Allow it in your browser and press “Use mic”, or type.",
  NotFoundError: "No microphone was found. Plug one in and press “Use mic”, or type.",
  NotReadableError: "Another program uses the microphone. Close it and press “Use mic”, or type.",
  insecure: "Browsers allow the microphone only on https or on this machine itself. You can type.",
  other: "The microphone could not be used. Press “Use mic” to try again, or type.",
};

const byId = (id) => document.getElementById(id);

const freshCall = () => ({
  sessionId: null,
  room: null,
  connection: "connecting", // connecting, connected, mending, over
  agent: "absent", // absent, here, lost
  agentState: "",
  waitingSince: Date.now(),
  lookedUpAt: Date.now(),
  heardSince: null, // when the agent was first heard, in this machine's time
  microphone: "asking", // asking, on, muted, none
  microphoneProblem: "",
  isSilenced: false, // the browser blocks the sound until a click
  isEnding: false,
});

const state = {
  view: "lobby", // lobby, call, closing
  isBusy: false, // the house was asked for a session or a token
  call: freshCall(),
  openCall: null, // {sessionId, userName} of a call that one can return to
  closing: { title: "", reason: "", duration: "", canReturn: false },
  unanswered: null, // a start whose answer was lost: the same key again gives the same session
};

// --- The house: REST -----------------------------------------------------------------------------------------------

class Refusal extends Error {}

async function ask(path, body, headers = {}) {
  const request = { headers, signal: AbortSignal.timeout(ANSWER_WITHIN_MS) };
  if (body) {
    Object.assign(request, { method: "POST", body: JSON.stringify(body) });
    headers["Content-Type"] = "application/json";
  }
  const response = await fetch(path, request);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(refusalWords(response, answer));
  return answer;
}

function refusalWords(response, answer) {
  const words = answer.detail || `The service answered with an error (${response.status}).`;
  const seconds = Number(response.headers.get("Retry-After"));
  if (!seconds) return words;
  return `${words} You can try again in ${seconds === 1 ? "a second" : `${seconds} seconds`}.`;
}

const lookUp = (sessionId) => ask(`/orchestrator/session/${encodeURIComponent(sessionId)}`);

async function askForSession(body) {
  const text = JSON.stringify(body);
  if (state.unanswered?.text !== text) state.unanswered = { text, key: randomKey() };
  try {
    const answer = await ask("/orchestrator/session/start", body, { "Idempotency-Key": state.unanswered.key });
    state.unanswered = null;
    return answer;
  } catch (problem) {
    if (problem instanceof Refusal) state.unanswered = null;
    throw problem;
  }
}

// Not crypto.randomUUID: it exists only on https and on this machine itself.
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// --- Starting, returning, ending -----------------------------------------------------------------------------------

const typed = (id) => byId(id).value.trim() || undefined; // JSON leaves out what is undefined

function wishes() {
  return { userName: typed("name"), voiceId: typed("voice"), openingLine: typed("opening"), systemPrompt: typed("prompt") };
}

async function start(event) {
  event.preventDefault();
  const wish = wishes();
  byId("name").value = wish.userName ?? ""; // without blanks, so that a name of blanks counts as none
  if (!byId("start-form").reportValidity()) return;
  withStorage(() => localStorage.setItem("greenroom.name", wish.userName));
  await whileBusy(async () => {
    const answer = await askForSession(wish);
    if (!answer.token) throw new Refusal("That call has already ended. Press Start for a new one.");
    setOpenCall({ sessionId: answer.sessionId, userName: wish.userName });
    await join(answer.sessionId, answer.serverUrl, answer.token);
  });
}

async function returnToCall() {
  const { sessionId, userName } = state.openCall;
  await whileBusy(async () => {
    const { token, url } = await ask("/api/token", { sessionId, userId: userName });
    const { startedAt } = await lookUp(sessionId);
    await join(sessionId, url, token, startedAt ? Date.parse(startedAt) : null);
  });
}

async function whileBusy(work) {
  if (state.isBusy) return;
  state.isBusy = true;
  openAudio();
  showProblem("");
  try {
    await work();
  } catch (problem) {
    showProblem(problem instanceof Refusal ? problem.message : "The service did not answer. Check your connection and try again.");
  }
  state.isBusy = false;
  render();
}

function showProblem(words) {
  if (state.view === "closing" && words) state.closing.reason = words;
  else setText("problem", words);
  render();
}

async function join(sessionId, url, token, heardSince = null) {
  const isReturn = state.call.sessionId === sessionId;
  // What is said while the call waits for an agent is recorded, and sent to the one that comes.
  const room = new Room({ publishDefaults: { preConnectBuffer: true } });
  const call = Object.assign(freshCall(), { sessionId, room, heardSince });
  state.call = call;
  follow(room, call);
  if (!isReturn) byId("transcript").replaceChildren();
  show("call");
  useMicrophone(call); // at the same time: the browser's question must not hold up the greeting
  try {
    await room.connect(url, token);
  } catch (error) {
    await notConnected(call, error);
    return;
  }
  call.connection = "connected";
  render();
}

async function notConnected(call, { reason, status }) {
  if (await closeIfEnded(call)) return;
  const isClosed = status === 401 || status === 404; // the token is too old, or there is no such room
  await close({ title: "The call could not be connected", reason: connectWords(reason, isClosed), canReturn: !isClosed });
}

// The library's own message can contain the token, so only its codes are used.
function connectWords(reason, isClosed) {
  if (isClosed) return "This call is no longer open. Please start a new one.";
  if (reason === ConnectionErrorReason.WebSocket) return "The room is full, or the media server had a fault.";
  if (reason === ConnectionErrorReason.Timeout) return "The media server did not answer in time.";
  return "The media server could not be reached from your network.";
}

async function end() {
  const { call } = state;
  if (call.isEnding) return;
  call.isEnding = true;
  render();
  try {
    const { details } = await ask("/orchestrator/session/end", { sessionId: call.sessionId });
    await close({ reason: "You ended the call.", duration: durationWords(details) });
  } catch {
    await close({ reason: "You left the call. The service could not be told, and will notice by itself.", canReturn: true });
  }
}

async function close({ title = "The call has ended", reason, duration = "", canReturn = false }) {
  const { call } = state;
  if (call.connection === "over") return;
  call.connection = "over";
  if (!canReturn) setOpenCall(null);
  document.querySelectorAll(".interim").forEach((line) => markFinal(line, true));
  state.closing = { title, reason, duration, canReturn };
  show("closing");
  await call.room.disconnect();
}

// Asks the house how the call stands, and closes it here when it has ended there.
async function closeIfEnded(call) {
  const session = await lookUp(call.sessionId).catch(() => null);
  if (session?.status !== "ended" || call !== state.call || call.isEnding) return false;
  const words = END_REASONS[session.endReason] ?? "The call was ended.";
  const reason = session.endedBy === "platform" ? `${words} This was our fault, not yours.` : words;
  await close({ reason, duration: durationWords(session) });
  return true;
}

function durationWords({ durationSeconds, durationMinutes }) {
  if (!durationSeconds) return "The agent was not heard, so no time was counted.";
  const seconds = Math.round(durationSeconds);
  const spoken = seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `You talked for ${spoken}, counted as ${durationMinutes} ${durationMinutes === 1 ? "minute" : "minutes"}.`;
}

// --- The room ------------------------------------------------------------------------------------------------------

function follow(room, call) {
  const change = (fields) => {
    Object.assign(call, fields);
    render();
  };
  room.registerTextStreamHandler("lk.transcription", (reader, speaker) => transcribe(call, reader, speaker.identity));
  room.on(RoomEvent.TrackSubscribed, (track, _, participant) => participant.isAgent && welcome(call, track, participant));
  room.on(RoomEvent.TrackUnsubscribed, (track, _, participant) => {
    track.detach();
    if (participant.isAgent) agentLeft(call);
  });
  room.on(RoomEvent.ParticipantAttributesChanged, (_, participant) => {
    if (participant.isAgent) change({ agentState: participant.attributes["lk.agent.state"] ?? "" });
  });
  room.on(RoomEvent.ConnectionQualityChanged, (quality, participant) => {
    if (participant.isAgent && call.agent !== "absent") change({ agent: quality === ConnectionQuality.Lost ? "lost" : "here" });
  });
  // Also when the microphone is unplugged and there is no other.
  room.on(RoomEvent.TrackMuted, (_, participant) => participant.isLocal && change({ microphone: "muted" }));
  room.on(RoomEvent.AudioPlaybackStatusChanged, () => change({ isSilenced: !room.canPlaybackAudio }));
  room.on(RoomEvent.SignalReconnecting, () => change({ connection: "mending" }));
  room.on(RoomEvent.Reconnecting, () => change({ connection: "mending" }));
  room.on(RoomEvent.SignalReconnected, () => change({ connection: "connected" }));
  room.on(RoomEvent.Reconnected, () => change({ connection: "connected" }));
  room.on(RoomEvent.Disconnected, (reason) => disconnected(call, reason));
}

function welcome(call, track, participant) {
  if (track.kind !== Track.Kind.Audio) return;
  byId("loudspeaker").replaceChildren(track.attach());
  meters.agent = listenTo(track.mediaStreamTrack);
  call.agent = "here";
  call.agentState = participant.attributes["lk.agent.state"] ?? "";
  call.heardSince ??= Date.now();
  render();
}

// Either the call is over or another agent takes it over: the house knows which.
function agentLeft(call) {
  byId("loudspeaker").replaceChildren();
  if (call.connection === "over") return;
  Object.assign(call, { agent: "absent", agentState: "", waitingSince: Date.now(), lookedUpAt: Date.now() });
  meters.agent = null;
  render();
  closeIfEnded(call);
}

async function disconnected(call, reason) {
  // Before the join succeeded, and once the call is being closed here, others report what happened.
  if (call.connection === "over" || call.connection === "connecting" || call.isEnding) return;
  if (reason === DisconnectReason.DUPLICATE_IDENTITY) {
    await close({ title: "The call moved", reason: "It was opened in another window and goes on there." });
  } else if (!(await closeIfEnded(call)) && !call.isEnding) {
    await close({ title: "The connection was lost", reason: "The call may still be open.", canReturn: true });
  }
}

async function useMicrophone(call) {
  Object.assign(call, { microphone: "asking", microphoneProblem: "" });
  render();
  await switchMicrophone(call, true);
}

async function switchMicrophone(call, isOn) {
  try {
    const { track } = await call.room.localParticipant.setMicrophoneEnabled(isOn);
    if (call.connection === "over") return track.stop(); // allowed only after the call was over
    meters.you = listenTo(track.mediaStreamTrack); // each time: another device is another track
    call.microphone = isOn ? "on" : "muted";
  } catch (error) {
    const problem = navigator.mediaDevices ? error.name : "insecure";
    call.microphone = "none";
    call.microphoneProblem = MICROPHONE_PROBLEMS[problem] ?? MICROPHONE_PROBLEMS.other;
  }
  render();
}

async function letHear() {
  byId("call-title").focus(); // the button goes away, and must not take the focus with it
  await Promise.all([state.call.room.startAudio(), audio.resume()]);
}

async function toggleMicrophone() {
  const { call } = state;
  if (call.microphone === "none") await useMicrophone(call);
  else if (call.microphone !== "asking") await switchMicrophone(call, call.microphone === "muted");
}

// --- Words: transcript and typed messages --------------------------------------------------------------------------

async function transcribe(call, reader, identity) {
  const speaker = identity === call.room.localParticipant.identity ? "you" : "agent";
  const id = reader.info.attributes["lk.segment_id"] ?? reader.info.id;
  let text = "";
  try {
    for await (const chunk of reader) {
      text += chunk;
      if (call === state.call) writeLine(id, speaker, text, false);
    }
  } catch {
    return; // the speaker was lost in the middle of a sentence; what came of it stays
  }
  // Read after the last chunk: a stream that is spoken along says only at its end that it was the final one.
  if (text && call === state.call) writeLine(id, speaker, text, reader.info.attributes["lk.transcription_final"] === "true");
}

function writeLine(id, speaker, text, isFinal) {
  const old = [...byId("transcript").children].find((line) => line.dataset.segment === id);
  const line = makeLine(id, speaker, text);
  markFinal(line, isFinal);
  if (old) old.replaceWith(line);
  else byId("transcript").append(line);
  byId("nothing-said").hidden = true;
  if (speaker === "you") byId("scroll").scrollTop = 0; // its end: see the style sheet
}

// Screen readers hear additions only: the growing text is hidden from them, the final line is a new element.
function markFinal(line, isFinal) {
  line.classList.toggle("interim", !isFinal);
  line.setAttribute("aria-hidden", !isFinal);
}

function makeLine(id, speaker, text) {
  const line = document.createElement("li");
  const who = document.createElement("span");
  const words = document.createElement("span");
  line.dataset.segment = id;
  line.className = `line ${speaker}`;
  who.className = "speaker";
  who.textContent = speaker === "you" ? "You" : "Agent";
  words.className = "words";
  words.textContent = text;
  line.append(who, " ", words);
  return line;
}

async function sendMessage(text) {
  const { call } = state;
  const problem = byId("message-problem");
  problem.textContent = "";
  if (call.agent !== "here" || call.connection !== "connected") {
    problem.textContent = "Not sent: the agent is not here yet.";
    return false;
  }
  try {
    const { id } = await call.room.localParticipant.sendText(text, { topic: "lk.chat" });
    writeLine(id, "you", text, true);
    return true;
  } catch {
    problem.textContent = "Not sent. Please try again.";
    return false;
  }
}

async function sendTyped(event) {
  event.preventDefault();
  const text = byId("message").value.trim();
  if (text && (await sendMessage(text))) byId("message").value = "";
}

// --- Level meters --------------------------------------------------------------------------------------------------

const meters = { agent: null, you: null };
let audio = null;

// Made in the click on Start, because browsers keep an AudioContext silent until a gesture.
function openAudio() {
  audio ??= new AudioContext();
  audio.resume();
}

function listenTo(mediaStreamTrack) {
  const analyser = new AnalyserNode(audio, { fftSize: 1024 });
  audio.createMediaStreamSource(new MediaStream([mediaStreamTrack])).connect(analyser);
  return { analyser, samples: new Float32Array(analyser.fftSize), level: 0 };
}

function measure(meter) {
  meter.analyser.getFloatTimeDomainData(meter.samples);
  const power = meter.samples.reduce((sum, sample) => sum + sample * sample, 0) / meter.samples.length;
  const loudness = (10 * Math.log10(power + 1e-9) - QUIETEST_DB) / (LOUDEST_DB - QUIETEST_DB);
  meter.level = Math.max(Math.min(loudness, 1), meter.level * 0.88, 0); // falls slowly, as a needle does
  return meter.level;
}

function drawMeters() {
  for (const who of ["agent", "you"]) {
    const level = meters[who] ? measure(meters[who]) : 0;
    byId(`${who}-meter`).style.setProperty("--level", level.toFixed(3));
    byId(who).classList.toggle("heard", level > 0.35);
  }
  if (state.view === "call") requestAnimationFrame(drawMeters);
}

// --- What is shown -------------------------------------------------------------------------------------------------

function show(view) {
  state.view = view;
  render();
  byId({ lobby: "lobby-title", call: "call-title", closing: "closing-title" }[view]).focus();
  window.scrollTo(0, 0);
  if (view === "call") requestAnimationFrame(drawMeters);
}

function render() {
  const { call, closing, isBusy, view } = state;
  byId("main").dataset.view = view;
  byId("lobby").hidden = view !== "lobby";
  byId("call").hidden = view === "lobby";
  byId("stage").hidden = byId("message-form").hidden = byId("suggestions").hidden = view !== "call";
  byId("closing").hidden = view !== "closing";
  document.title = { lobby: "Greenroom", call: "In a call – Greenroom", closing: "Call ended – Greenroom" }[view];
  byId("problem").hidden = !byId("problem").textContent;
  setText("start", isBusy ? "Starting …" : "Start");
  renderCall(call);
  renderClosing(closing);
}

function renderCall(call) {
  setText("connection", connectionWords(call));
  byId("stage").dataset.state = call.connection === "connected" && call.agent !== "here" ? "waiting" : call.connection;
  byId("agent").dataset.state = call.agent === "here" ? call.agentState || "here" : call.agent;
  byId("you").dataset.state = call.microphone;
  setText("agent-state", { absent: "Not here yet", lost: "Connection lost" }[call.agent] ?? AGENT_WORDS[call.agentState] ?? "Here");
  setText("you-state", MICROPHONE_WORDS[call.microphone]);
  setText("microphone-problem", call.microphoneProblem);
  byId("microphone-problem").hidden = !call.microphoneProblem;
  byId("playback-problem").hidden = !call.isSilenced;
  setText("mute", { muted: "Unmute", none: "Use mic" }[call.microphone] ?? "Mute");
  // Not `disabled`: that would take the keyboard's focus away.
  byId("mute").setAttribute("aria-disabled", call.microphone === "asking");
  byId("nothing-said").hidden = byId("transcript").children.length > 0;
  setText("nothing-words", state.view === "call" ? "What is said appears here. Speak, type, or try one of these:" : "Nothing was said.");
  renderTimer(call);
}

function renderClosing({ title, reason, duration, canReturn }) {
  setText("closing-title", title);
  setText("closing-reason", reason);
  setText("closing-duration", duration);
  byId("resume").hidden = !canReturn;
}

function renderTimer({ heardSince }) {
  const seconds = heardSince ? Math.max(0, Math.floor((Date.now() - heardSince) / 1000)) : 0;
  const minutes = String(Math.floor(seconds / 60)).padStart(2, "0");
  setText("timer", `${minutes}:${String(seconds % 60).padStart(2, "0")}`);
}

function connectionWords(call) {
  if (call.isEnding) return "Ending the call …";
  if (call.connection === "mending") return "Your connection was interrupted and is being mended …";
  if (call.agent === "lost") return "The agent’s connection is lost. If it does not come back, another agent takes over.";
  if (call.connection === "connecting") return "Connecting …";
  if (call.agent === "here") return "Connected";
  if (Date.now() - call.waitingSince < LATE_AFTER_MS) return "Connected. The agent is joining …";
  return "An agent is on its way. You keep your place in line.";
}

// Writing the same words again would make a screen reader say them again.
function setText(id, words) {
  if (byId(id).textContent !== words) byId(id).textContent = words;
}

function everySecond() {
  const { call } = state;
  if (state.view !== "call") return;
  render();
  if (call.agent === "here" || call.isEnding || Date.now() - call.lookedUpAt < LOOK_UP_EVERY_MS) return;
  call.lookedUpAt = Date.now();
  closeIfEnded(call);
}

// --- Beginning -----------------------------------------------------------------------------------------------------

// Storage is refused in some private windows; the page works without it.
function withStorage(use) {
  try {
    return use();
  } catch {
    return null;
  }
}

function setOpenCall(openCall) {
  state.openCall = openCall;
  withStorage(() => sessionStorage.setItem("greenroom.call", JSON.stringify(openCall)));
}

async function offerReturn() {
  const session = state.openCall && (await lookUp(state.openCall.sessionId).catch(() => null));
  if (session?.status === "ended") setOpenCall(null);
  byId("return-offer").hidden = !session || session.status === "ended";
}

async function backToLobby() {
  await offerReturn();
  show("lobby");
}

function begin() {
  byId("name").value = withStorage(() => localStorage.getItem("greenroom.name")) ?? "";
  state.openCall = withStorage(() => JSON.parse(sessionStorage.getItem("greenroom.call"))); // before a reload
  byId("start-form").addEventListener("submit", start);
  byId("return").addEventListener("click", returnToCall);
  byId("resume").addEventListener("click", returnToCall);
  byId("mute").addEventListener("click", toggleMicrophone);
  byId("end").addEventListener("click", end);
  byId("again").addEventListener("click", backToLobby);
  byId("hear").addEventListener("click", letHear);
  byId("message-form").addEventListener("submit", sendTyped);
  byId("suggestions").addEventListener("click", ({ target }) => target.matches("button") && sendMessage(target.textContent));
  // A page that comes back from the browser's memory has lost its call: show what a fresh one would.
  window.addEventListener("pageshow", (event) => event.persisted && location.reload());
  window.LivekitClient.setLogLevel("silent"); // its messages can contain the token
  setInterval(everySecond, 1000);
  render();
  offerReturn();
}

if (window.LivekitClient) begin();
else showProblem("The page is not complete: the media library is missing. Run the set-up again.");
