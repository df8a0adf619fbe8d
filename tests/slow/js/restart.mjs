// Makes 500 pictures, several at a time, and prints a line for each: seed, index and SHA-256.

import { createHash } from "node:crypto";

import { Client } from "@ign-service/client";

const client = new Client(process.argv[2], { deadline: 300 });
const seeds = Array.from({ length: 500 }, (_, seed) => seed).values();

async function work() {
  for (const seed of seeds) {
    const answer = await client.generate({ seed });
    const [{ index, bytes }] = answer.images;
    console.log(answer.seed, index, createHash("sha256").update(bytes).digest("hex"));
  }
}

await Promise.all(Array.from({ length: 8 }, work));
