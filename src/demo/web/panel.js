// The page around the faces: what is said about the connection, in words and numbers.
import { otherDevice } from "./session.js";

const NAMES = { desktop: "desktop", mobile: "phone" };

const $ = (id) => document.getElementById(id);

/** `state` of the page, as in data-state, and who is here. */
export function showStatus({ state, peer, device, retryAt }) {
  const other = NAMES[otherDevice(device)];
  const seconds = retryAt === null ? 0 : Math.ceil((retryAt - performance.now()) / 1000);
  const [text, more = ""] = {
    connecting: ["Connecting…"],
    online: peer ? ["Together", ` with your ${other}`] : ["Waiting", ` for your ${other}`],
    offline: seconds > 0 ? ["Offline", `, next try in ${seconds} s`] : ["Offline"],
    overwritten: ["Taken over", " by another tab"],
    refused: ["Not let in"],
  }[state];
  // A status that is written again is read again.
  if ($("status").textContent !== text) $("status").textContent = text;
  if ($("status-more").textContent !== more) $("status-more").textContent = more;
  $("retry").hidden = state !== "offline" || seconds < 2;
}

export function showPeer({ peer, device, live, fresh }) {
  const other = NAMES[otherDevice(device)];
  $("peer-tag").textContent = `Your ${other}: ${!peer ? "asleep" : !fresh ? "away" : live ? "live" : "idle"}`;
  $("peer-face").setAttribute("aria-label", peer ? `The face of your ${other}` : `A sleeping face: your ${other} is not connected`);
}

/** What to do about a sleeping face. */
export function showEmpty({ state, device }) {
  const [title, text] =
    state !== "online" ? ["Just a moment", "The relay is out of reach. This page keeps trying."]
    : device === "desktop" ? ["Your phone is asleep", "Scan the code with it, and this face wakes up."]
    : ["Your desktop is asleep", "Open this room on your computer, and this face wakes up."];
  $("empty-title").textContent = title;
  $("empty-text").textContent = text;
}

/** How the other device gets here. `reachable`: its link works beyond this computer. */
export function showInvitation({ device, link, reachable }) {
  const toPhone = device === "desktop";
  $("pair-title").textContent = toPhone ? "Bring your phone" : "Bring your desktop";
  $("qr").src = `/demo/qr.svg?data=${encodeURIComponent(link)}`;
  $("window").href = link.replace(/^https?:\/\/[^/]+/, location.origin);
  $("window").textContent = toPhone ? "Play it in a tab" : "Play it here";
  $("pair-text").textContent = !toPhone
    ? "Open this room's link on your computer."
    : reachable ? "Scan it with a phone in the same network." : "No phone can reach this computer's address. Try a tab instead.";
}

export function showNumbers({ delay, framesIn, framesOut, skipped, rtt }) {
  $("delay").textContent = milliseconds(delay);
  $("fps-in").textContent = framesIn;
  $("fps-out").textContent = framesOut;
  $("skipped").textContent = skipped;
  $("rtt").textContent = milliseconds(rtt);
}

export function showSession({ user, expiresAt, refreshing, welcome, backplane }) {
  $("uid").textContent = welcome?.uid ?? user;
  $("token").textContent = refreshing ? "being refreshed" : expiresAt === null ? "–" : validity(expiresAt - Date.now() / 1000);
  $("instance").textContent = welcome ? welcome.instance.slice(0, 8) : "–";
  $("backplane").textContent = !welcome ? "–" : backplane === "up" ? "in reach" : "out of reach";
}

/** A dialog that only its button leaves: what to do next is the person's decision. */
export function showNotice(notice) {
  const dialog = $("notice");
  if (!notice) return dialog.close();
  dialog.dataset.kind = notice.kind;
  $("notice-title").textContent = notice.title;
  $("notice-text").textContent = notice.text;
  $("notice-action").textContent = notice.action;
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
  title: "The relay said no",
  text: { disconnected: "An operator ended this connection." }[code] ?? `It does not accept this page (${code}). ${detail ?? ""}`.trim(),
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
