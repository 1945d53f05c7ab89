/**
 * What one pooled client says on the wire, and what that leaves to keep track of: the answers due, the statements that ran,
 * the names of what it has prepared. It lasts as long as the client, across its connections.
 */
import type { AcceptedClient } from '../login/client-handshake.js';
import type { SessionBinaryTypes } from '../session/binary-types.js';
import { ClientRecording } from '../session/client-recording.js';
import { ResponseTracker } from '../session/response-tracker.js';
import { StatementLog } from '../session/statement-log.js';
import { ClientInput } from './client-input.js';
import { ClientLink } from './client-link.js';
import { ClientMessages } from './client-messages.js';
import { ClientSocket, type ClientSocketListeners } from './client-socket.js';
import type { ParameterSet } from './parameter-sets.js';
import type { PoolContext } from './pool-context.js';

export interface ClientWireDeps extends ClientSocketListeners {
  readonly id: number;
  readonly accepted: AcceptedClient;
  readonly told: ParameterSet;
  readonly context: PoolContext;
  /** Of what the client has set, for statements that are read under it. */
  readonly settings: () => string;
  readonly types: () => SessionBinaryTypes;
  /** A chunk from the server was worked off. */
  readonly settle: () => void;
  readonly backendGone: () => void;
}

export class ClientWire {
  readonly socket: ClientSocket;
  readonly input: ClientInput;
  readonly tracker = new ResponseTracker();
  readonly log: StatementLog;
  readonly messages: ClientMessages;
  readonly link: ClientLink;

  constructor(deps: ClientWireDeps) {
    const { id, accepted, context, types } = deps;
    const { settings, clock, recorder } = context;
    const recording =
      recorder === null ? null : new ClientRecording(id, accepted, recorder, settings.frameBytesMax);
    this.socket = new ClientSocket(accepted.socket, deps.told, recording, deps);
    this.log = new StatementLog(
      context.tap,
      id,
      settings.textBytesMax,
      () => clock.monotonicMs(),
      settings.parameterBytesMax,
    );
    this.input = new ClientInput({
      frameBytesMax: settings.frameBytesMax,
      statementBytesMax: settings.stateBytesMax,
    });
    this.messages = new ClientMessages({
      tracker: this.tracker,
      log: this.log,
      decisions: context.decisions,
      sequences: context.sequences,
      definitions: context.definitions,
      statementBytesMax: settings.stateBytesMax,
      settings: deps.settings,
      types,
    });
    this.link = new ClientLink({
      context,
      tracker: this.tracker,
      log: this.log,
      messages: this.messages,
      socket: this.socket,
      types,
      settle: deps.settle,
      gone: deps.backendGone,
    });
  }
}
