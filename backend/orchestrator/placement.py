"""Which host starts how many agents."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Vacancy:
    """What a host can take: ``free`` slots, and ``at_once`` new agents now."""

    host_id: str
    free: int
    at_once: int


def spread(wanted: int, hosts: Collection[Vacancy]) -> dict[str, int]:
    """Give each agent to the host with the most free slots, one after the other; hosts that get none are left out."""
    shares: dict[str, int] = {}
    left = {host.host_id: min(host.free, host.at_once) for host in hosts}
    free = {host.host_id: host.free for host in hosts}
    for _ in range(wanted):
        open_hosts = [host_id for host_id, most in left.items() if most > 0]
        if not open_hosts:
            break
        host_id = max(open_hosts, key=lambda name: (free[name], name))
        shares[host_id] = shares.get(host_id, 0) + 1
        left[host_id] -= 1
        free[host_id] -= 1
    return shares
