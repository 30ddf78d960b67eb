// Runs the script of the dashboard against a live node, without a browser: `node tests/dashboard.mjs http://HOST:8080 [PAGE]`.
// A document that keeps what is set stands for the page, time is what the test says, and a fetch fails when the test says so.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import vm from "node:vm";

const [base, file] = process.argv.slice(2);
const page = file ? readFileSync(file, "utf8") : await (await fetch(base + "/cluster")).text();
assert.equal(page.match(/(src|href)\s*=\s*["']?(https?:)?\/\//), null, "nothing comes from elsewhere");
assert.equal(page.match(/innerHTML|outerHTML|insertAdjacentHTML|document\.write/), null, "what a node tells is text");
const script = page.match(/<script>([\s\S]*)<\/script>/)[1];
const ids = new Set([...page.matchAll(/ id="(\w+)"/g)].map(([, id]) => id));

class Element {
  constructor() { this.children = []; this.own = ""; this.className = ""; }
  append(...nodes) { this.children.push(...nodes); }
  replaceChildren(...nodes) { this.children = nodes; }
  set textContent(text) { this.own = String(text); this.children = []; }
  get textContent() { return this.own + this.children.map(child => child.textContent).join("|"); }
}

// The script in a page of its own. `answers` replaces what the node tells, by path.
function open(answers = {}) {
  const bed = { now: 0, elements: new Map(), timers: [], ticks: [], answers, signals: [] };
  const element = id => {
    assert.ok(ids.has(id), `the page has no element '${id}'`);
    if (!bed.elements.has(id)) bed.elements.set(id, new Element());
    return bed.elements.get(id);
  };
  bed.context = vm.createContext({
    document: { getElementById: element, createElement: () => new Element() },
    performance: { now: () => bed.now },
    fetch: (path, options) => {
      bed.signals.push(options?.signal);
      const answer = bed.answers[path] ?? bed.answers["*"];
      if (answer === "silence") return new Promise((_, no) => options.signal.addEventListener("abort", () => no(options.signal.reason)));
      return answer ? answer() : fetch(base + path, options);
    },
    setTimeout: call => bed.timers.push(call), setInterval: call => bed.ticks.push(call),
    location: new URL(base), AbortSignal, URL, console,
  });
  bed.text = id => element(id).textContent;
  bed.style = id => element(id).className;
  bed.rows = id => element(id).children.map(row => row.children.map(cell => cell.textContent));
  bed.settled = async () => {
    for (let wait = 0; bed.timers.length === 0; wait++) {
      assert.ok(wait < 1000, "a refresh never ends");
      await new Promise(done => setTimeout(done, 10));
    }
  };
  bed.again = async seconds => {
    bed.now += seconds * 1000;
    const next = bed.timers.shift();
    next();
    await bed.settled();
  };
  vm.runInContext(script, bed.context);
  return bed;
}

const json = document => () => Promise.resolve({ ok: true, json: async () => document, text: async () => document });
const refused = () => Promise.reject(new TypeError("Failed to fetch"));
const cluster = (index, changed = {}) => json({
  verdict: "healthy", reasons: [], leader: "n1", term: "2", members_total: 2, members_online: 2, quorum: 2, failures_tolerated: 0, observed_by: "n2",
  members: ["n1", "n2"].map(name => ({ name, role: "follower", status: "ok", lag_ms: 1, last_contact_ms: 3, addr: name + ":7001", rest_addr: name + ":8080", version: "1" })),
  groups: [{ id: "0", kind: "meta", leader: "n1", term: "2", commit_index: "999", replicas: [] },
    { id: "1", kind: "data", leader: "n1", term: "2", commit_index: index, replicas: [{ node: "n1" }] }], ...changed });
const metrics = (under, all) => json(`mareedb_request_seconds_bucket{operation="put",le="0.002"} ${under}\n` +
  `mareedb_request_seconds_bucket{operation="put",le="0.05"} ${all}\nmareedb_request_seconds_bucket{operation="put",le="+Inf"} ${all}\n`);

// What a live node tells is shown: the names of the fields are the API's.
{
  const bed = open();
  await bed.settled();
  const told = await (await fetch(base + "/v1/cluster")).json();
  assert.equal(bed.text("verdict"), told.verdict.replace("_", " "));
  assert.equal(bed.style("verdict"), told.verdict);
  assert.equal(bed.rows("members").length, told.members.length);
  const elections = await (await fetch(base + "/v1/cluster/elections")).json();
  assert.ok(elections.items.length > 0);
  const [when, group, term, leader, why] = bed.rows("elections")[0];
  const newest = elections.items[0];
  assert.match(when, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$/);
  assert.deepEqual([group, term, leader, why], [newest.group, newest.term, newest.leader, newest.reason].map(String));
  assert.equal(bed.rows("daemons").length, 3);
  assert.match(bed.text("disk"), /half take at most \d+ µs/);
  await fetch(base + "/v1/kv/dashboard", { method: "PUT", body: "v" });
  await bed.again(1);
  const puts = bed.rows("requests").find(([operation]) => operation === "put");
  assert.match(puts[1], /^\d+\.\d$/);
  assert.match(puts[2], /^[\d.]+ ms$/);
  const own = bed.rows("members").find(([name]) => name.endsWith(told.observed_by));
  assert.equal(own.length, 9);
  for (const id of ["of_cluster", "of_elections", "of_metrics", "of_node"]) assert.equal(bed.style(id), "", id);
}

// Writes a second are the leader's, and the latency is the asked node's.
{
  const bed = open({ "/v1/cluster": cluster("100"), "/v1/node": json({ daemons: [] }), "/v1/cluster/elections": json({ items: [] }), "/metrics": metrics(10, 20) });
  await bed.settled();
  assert.deepEqual(bed.rows("members").map(row => row[4]), ["-", "-"], "one look has no rate");
  bed.answers["/v1/cluster"] = cluster("28506");
  bed.answers["/metrics"] = metrics(109, 120);
  await bed.again(2);
  await bed.again(2);
  bed.answers["/v1/cluster"] = cluster("56912");
  await bed.again(2);
  assert.deepEqual(bed.rows("members").map(row => row[4]), ["14,203", "-"]);
  assert.deepEqual(bed.rows("members").map(row => row[5]), ["-", "2 ms"], "99 of 100 lie below 2 ms");
  assert.deepEqual(bed.rows("requests"), [["put", "16.7", "2 ms", "2 ms"]]);
  // A gateway that began anew counts from nothing: no rate below zero.
  bed.answers["/metrics"] = metrics(1, 1);
  await bed.again(1);
  assert.equal(bed.rows("requests")[0][1], "-");
  // The name leads to that node's page.
  const link = bed.elements.get("members").children[0].children[0].children[0];
  assert.equal(link.href, "http://n1:8080/cluster");
}

// One refresh that fails leaves no red behind, and what a node tells is text.
{
  const bed = open({ "*": json({ daemons: [], items: [] }), "/metrics": metrics(0, 0), "/v1/cluster": cluster("1") });
  await bed.settled();
  bed.answers["/v1/cluster"] = refused;
  await bed.again(1);
  assert.equal(bed.style("summary"), "error");
  assert.equal(bed.text("verdict"), "healthy", "one second old");
  const evil = "<img src=x onerror=alert(1)>";
  bed.answers["/v1/cluster"] = cluster("1", { verdict: "degraded", reasons: [{ code: "MEMBER_DOWN", message: evil }] });
  await bed.again(1);
  assert.equal(bed.style("summary"), "");
  assert.match(bed.text("summary"), /^Leader n1/);
  assert.equal(bed.text("reasons"), "MEMBER_DOWN: " + evil);
  assert.equal(bed.style("verdict"), "degraded");
}

// A host that vanishes: every request has a limit, and an old verdict is not shown as today's.
{
  const bed = open({ "*": json({ daemons: [], items: [] }), "/metrics": metrics(0, 0), "/v1/cluster": cluster("1") });
  await bed.settled();
  assert.equal(bed.text("age"), "As of now.");
  bed.answers = { "*": "silence" };
  bed.signals.length = 0;
  const next = bed.timers.shift();
  next();
  assert.ok(bed.signals.length >= 3 && bed.signals.every(signal => signal instanceof AbortSignal), "no fetch without a limit");
  bed.now += 6000;
  bed.ticks[0]();
  assert.equal(bed.text("verdict"), "unknown", "before any of them has ended");
  assert.equal(bed.text("age"), "As of 6 s ago.");
  assert.equal(bed.style("of_cluster"), "old");
  await bed.settled();
  assert.equal(bed.style("summary"), "error");
  for (const id of ["of_metrics", "of_node"]) assert.equal(bed.style(id), "old", id);
}

// A node that never answered has no verdict.
{
  const bed = open({ "*": refused });
  await bed.settled();
  assert.equal(bed.text("verdict"), "unknown");
  assert.equal(bed.style("summary"), "error");
}
console.log("the dashboard shows what it should");
