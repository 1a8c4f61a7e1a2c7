// The hook in React's development build, with StrictMode, which mounts each component twice.
import { afterEach, beforeEach, test } from "node:test";
import assert from "node:assert/strict";
import { createElement as h, StrictMode, act } from "react";
import { renderToString } from "react-dom/server";
import { create } from "react-test-renderer";
import { FakeWebSocket, freeze, settle, thaw } from "./fakes.mjs";
import { useDuoRelay, useRelayEvent } from "duorelay/react";

globalThis.IS_REACT_ACT_ENVIRONMENT = true;

beforeEach(freeze);
afterEach(thaw);

const options = (more) => ({
  url: "wss://relay.test/ws", device: "desktop", client: "tab", WebSocket: FakeWebSocket, getToken: () => "token", ...more,
});

const frames = [];

function Screen({ device = "desktop", getToken = () => "token" }) {
  const { relay, state, peer } = useDuoRelay(options({ device, getToken }));
  useRelayEvent(relay, "frame", (stream, bytes) => frames.push([stream, ...bytes]));
  return `${state} ${peer?.connection ?? "alone"}`;
}

/** Renders in StrictMode; what is shown, and ways to render again and to end. */
async function render(element) {
  let renderer;
  const strict = (child) => h(StrictMode, null, child);
  await act(async () => {
    renderer = create(strict(element));
    await settle();
  });
  return {
    show: (next) => act(async () => {
      renderer.update(strict(next));
      await settle();
    }),
    text: () => renderer.toJSON(),
    unmount: () => act(async () => renderer.unmount()),
  };
}

test("StrictMode: one socket, and the state on the screen follows it", async () => {
  const { text, unmount } = await render(h(Screen));
  assert.equal(FakeWebSocket.made.length, 1);
  assert.equal(text(), "connecting alone");
  const [socket] = FakeWebSocket.made;
  await act(async () => socket.welcome({ peer: { connection: "p1", generation: 1 } }));
  assert.equal(text(), "online p1");
  await act(async () => socket.frame(1, 7));
  assert.deepEqual(frames.splice(0), [[1, 7]]);
  await unmount();
  assert.equal(socket.closedWith, 1000);
  assert.equal(FakeWebSocket.made.length, 1);
});

test("new functions keep the connection; another device makes a new one", async () => {
  const { show, unmount } = await render(h(Screen));
  await act(async () => FakeWebSocket.made[0].welcome());
  await show(h(Screen, { getToken: () => "newer" }));
  assert.equal(FakeWebSocket.made.length, 1);
  await show(h(Screen, { device: "mobile", getToken: () => "newer" }));
  assert.equal(FakeWebSocket.made[0].closedWith, 1000);
  assert.equal(FakeWebSocket.made.length, 2);
  assert.equal(FakeWebSocket.made[1].token, "newer");
  await unmount();
});

test("where a server renders, nothing connects", () => {
  assert.equal(renderToString(h(Screen)), "connecting alone");
  assert.equal(FakeWebSocket.made.length, 0);
});
