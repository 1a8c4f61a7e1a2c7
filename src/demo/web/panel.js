// The page around the faces: what is said about the connection, in words and numbers.
import { otherDevice } from "./session.js";

const NAMES = { desktop: "desktop", mobile: "phone" };

const $ = (id) => document.getElementById(id);

const write = (id, text) => {
  // What is written again would be read again.
  if ($(id).textContent !== text) $(id).textContent = text;
};

/** `state` of the page, as in data-state; a page that has lost its connection stays `offline`, also while it is `trying`. */
export function showStatus({ state, trying, peer, device, retryAt }) {
  const other = NAMES[otherDevice(device)];
  const seconds = retryAt === null ? 0 : Math.ceil((retryAt - performance.now()) / 1000);
  write("status", {
    connecting: "Connecting…",
    online: peer ? `Together with your ${other}` : `Waiting for your ${other}`,
    offline: "Offline",
    overwritten: "Taken over by another tab",
    refused: "Not let in",
    ended: "Ended by an operator",
  }[state]);
  // Outside of the live region: nobody wants to hear each second.
  write("countdown", trying ? "trying now" : state === "offline" && seconds > 0 ? `next try in ${seconds} s` : "");
  const stopped = ["overwritten", "refused", "ended"].includes(state);
  write("retry", state === "overwritten" ? takenOver(device).action : "Try now");
  $("retry").hidden = !stopped && (state !== "offline" || seconds < 2);
}

export function showPeer({ state, peer, device, live, fresh, paused }) {
  const other = NAMES[otherDevice(device)];
  const [tag, label] =
    paused ? ["paused", `The face of your ${other}, paused`]
    : state !== "online" ? ["no news", `A sleeping face: this page has no connection to your ${other}`]
    : !peer ? ["asleep", `A sleeping face: your ${other} is not connected`]
    : [!fresh ? "away" : live ? "live" : "idle", `The face of your ${other}`];
  write("peer-tag", `Your ${other}: ${tag}`);
  if ($("peer-face").getAttribute("aria-label") !== label) $("peer-face").setAttribute("aria-label", label);
}

/** What to do about a sleeping face. `reachable`: the code's link works beyond this computer. */
export function showEmpty({ state, device, reachable }) {
  const [title, text] = {
    connecting: ["Just a moment", "The page connects to the relay."],
    offline: ["Out of reach", "The relay does not answer. This page keeps trying."],
    overwritten: ["Another tab plays here", "This page has let go until you take over again."],
    refused: ["Not let in", "The relay does not accept this page."],
    ended: ["The connection has ended", "An operator of the relay ended it."],
    online: device !== "desktop" ? ["Your desktop is asleep", "Open this room on your computer, and this face wakes up."]
      : reachable ? ["Your phone is asleep", "Scan the code with it, and this face wakes up."]
      : ["Your phone is asleep", "Play it in another tab, and this face wakes up."],
  }[state];
  write("empty-title", title);
  write("empty-text", text);
}

/** How the other device gets here. `reachable`: its link works beyond this computer. */
export function showInvitation({ device, link, reachable }) {
  const toPhone = device === "desktop";
  write("pair-title", toPhone ? "Bring your phone" : "Bring your desktop");
  document.documentElement.dataset.reachable = String(reachable);
  if (reachable) $("qr").src = `/demo/qr.svg?data=${encodeURIComponent(link)}`;
  $("window").href = link.replace(/^https?:\/\/[^/]+/, location.origin);
  $("window").textContent = toPhone ? "Play it in a tab" : "Play it here";
  $("pair-text").textContent = !toPhone
    ? "Open this room's link on your computer."
    : reachable ? "Scan it with a phone in the same network." : "No phone can reach this computer's address. Try a tab instead.";
}

/** `ways`: to the relay and from it, what the library estimates; null where it does not know. */
export function showNumbers({ delay, framesIn, framesOut, skipped, rtt, ways }) {
  write("delay", milliseconds(delay));
  write("fps-in", String(framesIn));
  write("fps-out", String(framesOut));
  write("skipped", String(skipped));
  write("rtt", milliseconds(rtt));
  for (const way of ["up", "down"]) {
    $(`${way}-row`).hidden = (ways?.[way] ?? null) === null;
    write(way, milliseconds(ways?.[way] ?? null));
  }
}

/** A network that does not take all frames: each is { done, all } in frames a second, or null. */
export function showNetwork({ up, down, device }) {
  const text = [
    up && `Your network is slow: ${up.done} of ${up.all} frames a second leave.`,
    down && `Of your ${NAMES[otherDevice(device)]}, ${down.done} of ${down.all} frames a second arrive.`,
  ].filter(Boolean).join(" ");
  write("network", text);
  $("network").hidden = text === "";
}

/** Whether frames go straight to the other device or through the relay; null where the library does not say. */
export function showPath(path) {
  $("path-row").hidden = path === null;
  write("path", path === "direct" ? "straight to the other device" : "through the relay");
}

/** The camera's state (camera.js), its sentence, and how many faces it finds a second. */
export function showCamera({ state, text, running, secureUrl }) {
  write("camera-text", text);
  write("camera", running ? "Stop the camera" : state === "slow" ? "Use it all the same" : state === "off" ? "Use my camera" : "Try the camera again");
  $("camera-video").hidden = !running || state === "asking";
  $("camera-secure").hidden = state !== "insecure" || !secureUrl;
  if (secureUrl) $("camera-secure").href = secureUrl;
}

export function showFaceRate(rate) {
  $("camera-rate").hidden = rate === null;
  if (rate !== null) write("camera-rate", `${rate} faces a second`);
}

export function showSession({ user, expiresAt, refreshing, welcome, backplane }) {
  write("uid", welcome?.uid ?? user);
  write("token", refreshing ? "being refreshed" : expiresAt === null ? "–" : validity(expiresAt - Date.now() / 1000));
  write("instance", welcome ? welcome.instance.slice(0, 8) : "–");
  write("backplane", !welcome ? "–" : backplane);
}

/** A dialog about an end that only the person can undo. The same words and button stay in the page once it is closed. */
export function showNotice(notice) {
  const dialog = $("notice");
  if (!notice) return dialog.close();
  dialog.dataset.kind = notice.kind;
  write("notice-title", notice.title);
  write("notice-text", notice.text);
  write("notice-action", notice.action);
  $("help").close();
  if (!dialog.open) dialog.showModal();
}

export const takenOver = (device) => ({
  kind: "overwritten",
  title: "Another tab took over",
  text: `Another tab or browser is your ${NAMES[device]} now. There is room for one, so this page let go.`,
  action: "Take over again",
});

export const refused = ({ code, detail }) => ({
  kind: "refused",
  title: code === "disconnected" ? "The connection has ended" : "The relay said no",
  text: code === "disconnected" ? "An operator ended it." : `It does not accept this page (${code}). ${detail ?? ""}`.trim(),
  action: "Try again",
});

let toastTimer;

export function toast(text) {
  $("toast").textContent = text;
  $("toast").classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => $("toast").classList.remove("shown"), 2_600);
}

function milliseconds(value) {
  if (value === null) return "–";
  return value < 10 ? value.toFixed(1) : String(Math.round(value));
}

function validity(seconds) {
  if (seconds <= 0) return "expired";
  if (seconds < 90) return `valid for ${Math.ceil(seconds)} s`;
  return `valid for ${Math.round(seconds / 60)} min`;
}
