// A client of the reward service, made from its .proto files when it starts: no generated code.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { randomUUID } = require('node:crypto');
const { setTimeout: sleep } = require('node:timers/promises');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const MAX_MESSAGE_BYTES = 64 * 1024 * 1024;
const FIRST_PAUSE_MS = 200;
const MAX_PAUSE_MS = 5000;

/**
 * Scores completions. Every call has a deadline. A call that finds the service away (UNAVAILABLE) or full
 * (RESOURCE_EXHAUSTED, with a hint when to come back) is repeated until then, with the same request_id, so that the
 * service computes it once.
 */
class RewardClient {
  /**
   * @param {string} target "host:port"
   * @param {{protos?: string, deadlineSeconds?: number}} options protos: folder that has rlhf/v1.
   */
  constructor(target, { protos = path.join(__dirname, '../../../protos'), deadlineSeconds = 60 } = {}) {
    const definition = protoLoader.loadSync('rlhf/v1/reward.proto', {
      includeDirs: [protos],
      keepCase: true, // item_id, not itemId
      enums: String, // "SCORE_ERROR_CODE_TOO_LONG", not 2
      longs: Number,
      oneofs: true, // result.outcome says which of its fields is set
    });
    const { RewardService } = grpc.loadPackageDefinition(definition).rlhf.v1;
    this.deadlineSeconds = deadlineSeconds;
    this.stub = new RewardService(target, credentials(), {
      'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
      'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
    });
  }

  /** Returns what is being served, with its limits. */
  getModel() {
    return this.call('GetModel', {});
  }

  /**
   * Returns {model_version, results}, one result for each item in order: {item_id, reward} or {item_id, error}.
   *
   * @param {object[]} items messages of the type ScoreItem, such as {text: {prompt, completion}}.
   */
  async score(items) {
    const response = await this.call('Score', { request_id: randomUUID(), items });
    if (response.results.length !== items.length) {
      throw new Error(`the service sent ${response.results.length} results for ${items.length} items`);
    }
    return response;
  }

  close() {
    this.stub.close();
  }

  async call(method, request) {
    const deadline = Date.now() + this.deadlineSeconds * 1000;
    for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(2 * pause, MAX_PAUSE_MS)) {
      try {
        return await this.callOnce(method, request, deadline);
      } catch (error) {
        const wait = pauseBeforeRetry(error, pause);
        if (wait === null || Date.now() + wait >= deadline) throw error;
        await sleep(wait);
      }
    }
  }

  callOnce(method, request, deadline) {
    return new Promise((resolve, reject) => {
      this.stub[method](request, metadata(), { deadline }, (error, response) =>
        error ? reject(error) : resolve(response),
      );
    });
  }
}

/** Returns how long to wait before the call is made again; null if that would not help. */
function pauseBeforeRetry(error, pause) {
  if (error.code === grpc.status.UNAVAILABLE) return pause;
  const [hint] = error.code === grpc.status.RESOURCE_EXHAUSTED ? error.metadata.get('retry-after-ms') : [];
  return hint === undefined ? null : Math.max(Number(hint), 50) * (1 + 0.3 * Math.random());
}

/** Mutual TLS if its three variables are set; they are those of all clients of these services. */
function credentials() {
  const files = ['RLHF_TLS_CA_FILE', 'RLHF_TLS_KEY_FILE', 'RLHF_TLS_CERT_FILE'].map((name) => process.env[name]);
  if (files.every((file) => !file)) return grpc.credentials.createInsecure();
  if (!files.every((file) => file)) throw new Error('set all three RLHF_TLS variables, or none');
  return grpc.credentials.createSsl(...files.map((file) => fs.readFileSync(file)));
}

/** The token, if RLHF_TOKEN_FILE names one; read for each call, because tokens are renewed. */
function metadata() {
  const sent = new grpc.Metadata();
  const file = process.env.RLHF_TOKEN_FILE;
  if (file) sent.set('authorization', `Bearer ${fs.readFileSync(file, 'utf8').trim()}`);
  return sent;
}

module.exports = { RewardClient };
