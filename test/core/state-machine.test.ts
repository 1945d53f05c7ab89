import { describe, expect, test } from 'vitest';
import { StateCell, type TransitionTable } from '../../src/core/state-machine.js';

type Door = 'open' | 'closed' | 'locked';
const DOOR: TransitionTable<Door> = { open: ['closed'], closed: ['open', 'locked'], locked: ['closed'] };

describe('state cell', () => {
  test('every move the table allows is made and told', () => {
    const moves: string[] = [];
    const door = new StateCell<Door>('door', DOOR, 'open', (from, to) => moves.push(`${from}→${to}`));
    door.move('closed');
    door.move('locked');
    expect(door.current).toBe('locked');
    expect(door.is('open', 'locked')).toBe(true);
    expect(door.is('open', 'closed')).toBe(false);
    expect(moves).toEqual(['open→closed', 'closed→locked']);
  });

  test.each([
    ['open', 'locked'],
    ['open', 'open'],
    ['locked', 'open'],
  ] as const)('%s → %s is illegal: it throws, tells nobody and changes nothing', (from, to) => {
    let told = 0;
    const door = new StateCell<Door>('door', DOOR, from, () => (told += 1));
    expect(() => door.move(to)).toThrow(expect.objectContaining({ code: 'internal' }));
    expect(() => door.move(to)).toThrow(`door: illegal transition ${from} → ${to}`);
    expect(door.current).toBe(from);
    expect(told).toBe(0);
  });
});
