import { expect, test } from 'vitest';
import { Stage } from './stage.js';

test('a cutover and a rollback move the one writable side', async () => {
  await using stage = await Stage.open();
  expect(await stage.writable()).toEqual(['source']);
  const there = await stage.operate('cutover');
  console.log(JSON.stringify(there));
  expect(there).toMatchObject({ outcome: 'done', epoch: 1, moved: 3 });
  expect(await stage.writable()).toEqual(['destination']);
  const back = await stage.operate('rollback');
  console.log(JSON.stringify(back));
  expect(back).toMatchObject({ outcome: 'done', epoch: 2 });
  expect(await stage.writable()).toEqual(['source']);
  const again = await stage.operate('cutover');
  console.log(JSON.stringify(again.steps));
  expect(again).toMatchObject({ outcome: 'done', epoch: 3 });
  expect(await stage.writable()).toEqual(['destination']);
  console.log(JSON.stringify(await stage.coordinator.status()));
});
