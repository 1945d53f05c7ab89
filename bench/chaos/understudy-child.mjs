/**
 * `understudy run` with a hook. Its parent arms points of an operation (`{ arm: { point, hold } }`): when one is reached
 * the process tells it, and with `hold` waits there until it hears `{ go: point }`.
 */
import { loadConfig, startUnderstudy } from 'understudy';

const armed = new Map();
const waiting = new Map();

process.on('message', (message) => {
  if (message.arm !== undefined) armed.set(message.arm.point, message.arm);
  if (message.disarm === true) {
    armed.clear();
    for (const go of waiting.values()) go();
    waiting.clear();
  }
  if (message.go !== undefined) {
    waiting.get(message.go)?.();
    waiting.delete(message.go);
  }
});
process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));

function observe(point, kind) {
  const arm = armed.get(point);
  if (arm === undefined) return undefined;
  armed.delete(point);
  process.send({ reached: point, kind });
  if (arm.hold !== true) return undefined;
  return new Promise((resolve) => waiting.set(point, resolve));
}

const understudy = await startUnderstudy(loadConfig({ file: process.argv[2] }), { observe });
process.once('SIGTERM', () => {
  understudy.stop().then(
    () => process.disconnect(),
    () => process.kill(process.pid, 'SIGKILL'),
  );
});
