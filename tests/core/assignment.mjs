// Reads the published vectors and prints what does not agree with them, computed by node's own SHA-256.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const published = JSON.parse(readFileSync(process.argv[2], "utf8"));
const wrong = [];

function bucket(salt, key) {
  const drawn = createHash("sha256").update(`${salt}:${key}`, "utf8").digest().readBigUInt64BE(0);
  return Number((drawn * 10000n) >> 64n);
}

for (const { salt, key, bucket: expected, candidate_at } of published.vectors) {
  const found = bucket(salt, key);
  const weights = published.weights_bp.filter((weight) => found < weight);
  if (found !== expected || JSON.stringify(weights) !== JSON.stringify(candidate_at)) {
    wrong.push({ salt, key, expected, found });
  }
}

const { salt, prefix, count, sha256, candidates } = published.sequence;
const buckets = Array.from({ length: count }, (_, n) => bucket(salt, prefix + n));
const digest = createHash("sha256").update(buckets.map((each) => `${each}\n`).join("")).digest("hex");
const counted = published.weights_bp.map((weight) => buckets.filter((each) => each < weight).length);
if (digest !== sha256 || JSON.stringify(counted) !== JSON.stringify(candidates)) {
  wrong.push({ salt, prefix, digest, counted });
}

console.log(JSON.stringify({ vectors: published.vectors.length, sequence: buckets.length, wrong }));
