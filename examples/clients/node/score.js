// node score.js --target localhost:50052 < items.jsonl
//
// Each line has a "prompt" and a "completion", or "messages" of which the last is scored. Prints each line with its
// "reward", or with an "error" for that line alone. Exit code 1 if a line has no reward, 2 if the call failed.
'use strict';

const { parseArgs } = require('node:util');
const readline = require('node:readline');
const { RewardClient } = require('./reward_client.js');

const OPTIONS = {
  target: { type: 'string', default: 'localhost:50052' },
  protos: { type: 'string' },
  'deadline-seconds': { type: 'string', default: '60' },
};

async function main() {
  const { values } = parseArgs({ options: OPTIONS });
  const records = [];
  for await (const line of readline.createInterface({ input: process.stdin })) {
    if (line.trim()) records.push(JSON.parse(line));
  }
  const client = new RewardClient(values.target, {
    protos: values.protos,
    deadlineSeconds: Number(values['deadline-seconds']),
  });
  try {
    const { max_items: maxItems } = await client.getModel();
    let numErrors = 0;
    for (let first = 0; first < records.length; first += maxItems) {
      numErrors += await scoreBatch(client, records.slice(first, first + maxItems));
    }
    return numErrors === 0 ? 0 : 1;
  } finally {
    client.close();
  }
}

/** Prints what became of each record; returns how many have no reward. */
async function scoreBatch(client, records) {
  const { results, model_version } = await client.score(records.map(toItem));
  results.forEach((result, index) => {
    console.log(JSON.stringify({ ...records[index], ...outcome(result), model_version }));
  });
  return results.filter((result) => result.outcome !== 'reward').length;
}

function toItem({ messages, prompt, completion }) {
  return messages ? { conversation: { messages } } : { text: { prompt, completion } };
}

/** A result has a reward or an error, never both; a reward that is missing is not 0. */
function outcome({ outcome, reward, error, spread, components = [] }) {
  if (outcome !== 'reward') {
    return { error: error ?? { code: 'SCORE_ERROR_CODE_UNSPECIFIED', message: 'neither reward nor error came' } };
  }
  if (components.length === 0) return { reward, spread };
  // The loader adds names of its own to messages with optional fields.
  const parts = components.map(({ name, weight, reward, spread }) => ({ name, weight, reward, spread }));
  return { reward, spread, components: parts };
}

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error) => {
    console.error(`score.js: ${error.message}`);
    process.exitCode = 2;
  },
);
