/**
 * For which subsets a stream carries changes: as its origin's log has told by `route` messages, one subset after the
 * other. Stored with the stream's position, so that a restart at any point decides the same.
 */
import { WHOLE_DATABASE, type LogMessage, type Side, type SubsetId } from '../core/ports.js';

/** Who leads one subset, as far as the origin's log has told. */
export interface SubsetAuthority {
  readonly authoritative: boolean;
  readonly epoch: number;
}

/** Of the whole database; and, by name, of the subsets that a message was about. Never changed, only replaced. */
export interface Authority extends SubsetAuthority {
  readonly subsets?: Readonly<Record<SubsetId, SubsetAuthority>>;
}

/** A subset that no message was about yet is led as the whole was. */
export function authorityOf(authority: Authority, subset: SubsetId): SubsetAuthority {
  if (subset === WHOLE_DATABASE) return authority;
  return authority.subsets?.[subset] ?? { authoritative: authority.authoritative, epoch: 0 };
}

/** The authority behind a transaction of `origin` that holds the messages; the same object where nothing moved. */
export function afterMessages(
  authority: Authority,
  messages: readonly LogMessage[],
  origin: Side,
): Authority {
  let now = authority;
  for (const message of messages) {
    if (message.t !== 'route') continue;
    const { subset, epoch, side } = message;
    const told: SubsetAuthority = { epoch, authoritative: side === origin };
    const known = authorityOf(now, subset);
    if (epoch < known.epoch) continue;
    if (epoch === known.epoch && told.authoritative === known.authoritative) continue;
    now =
      subset === WHOLE_DATABASE
        ? { ...now, ...told }
        : { ...now, subsets: { ...now.subsets, [subset]: told } };
  }
  return now;
}

/** For the progress row; null where no message was about a part. */
export function subsetsText({ subsets }: Authority): string | null {
  return subsets === undefined ? null : JSON.stringify(subsets);
}

export function subsetsFrom(text: string | null | undefined): Pick<Authority, 'subsets'> {
  return text == null ? {} : { subsets: JSON.parse(text) as NonNullable<Authority['subsets']> };
}
