"""``why``: what a process or a fence waits for, down to the process that must act."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import click

from fencebroker import Broker
from fencebroker.cli import names, schema
from fencebroker.cli.command import Invocation, Verb, asks_broker, parsed, wants_json
from fencebroker.cli.completion import complete_targets
from fencebroker.cli.events import Stream
from fencebroker.cli.graph import Deadlock, FenceNode, Key, Nobody, ProcessNode, walk
from fencebroker.cli.processes import Holder
from fencebroker.cli.render import Branch, Cell, Column, Table, branches, facts, span, state
from fencebroker.cli.snapshot import Snapshot
from fencebroker.cli.targets import METAVAR, Target, parse_target, point_at
from fencebroker.rows import FenceRow, Row, SyncFileRow, TimelineRow

__all__ = ["Answer", "why"]

#: A chain that is longer is cut here; JSON and --dot have all of it.
DEPTH: Final = 40
#: So many points of one producer are named in the line that says what it should signal.
SHOWN: Final = 3

#: With --watch: how soon after a look the next one may come, and how late it comes when the broker has nothing to tell, in seconds.
PAUSE: Final = 0.1
REFRESH: Final = 2.0

EXAMPLE = """\
$ fencectl why '#5'
inputs (3:1 all, 1.5 s)
├─ camera0@7 (4.2 s) <- 4211 capture (asleep)
└─ lens@1 (1.5 s) <- nobody: there is no timeline lens

must act  4211 capture (asleep): to signal camera0@7; camera0 is at 6, since 4.2 s
          whoever is to create the timeline lens
"""


@click.command(cls=Verb, example=EXAMPLE, short_help="What something waits for, and who must act.")
@click.argument("target", callback=parsed(parse_target), metavar=METAVAR, shell_complete=complete_targets)
@click.option("--dot", is_flag=True, help="Write the graph for graphviz: fencectl why --dot 812 | dot -Tsvg.")
@click.option("--watch", is_flag=True, help="Keep it current, until the fence has signalled or Ctrl-C.")
@asks_broker
@wants_json
@click.pass_obj
def why(invocation: Invocation, target: Target, dot: bool, watch: bool) -> None:
    """Show what a process or a fence waits for, down to the process that must act.

    A process leads to the fences that its threads sleep for, a merge to its members, a point to whoever holds its timeline now, and that
    process to what it waits for in turn. Circles are deadlocks. A number is a process if it has to do with this broker, else a sync_file's
    ID; /proc/812 and '#812' say which. NAME is a timeline: all its active points.

    How another process waits is read from /proc; without the right to attach to it (root, CAP_SYS_PTRACE) one sees only what it holds.

    --watch looks again when something happens in the broker, and every two seconds, for a process that stops tells nobody. Where there is
    no screen it writes the answer anew when it is another one.
    """
    if dot and invocation.output.as_json:
        raise click.UsageError("--dot and --json are two forms of one answer: take one of them.")
    with invocation.connect() as broker:
        if watch:
            _watch(invocation, broker, target, dot)
        else:
            _write(invocation, Answer.find(broker, target), dot)


def _write(invocation: Invocation, answer: Answer, dot: bool, *, one_line: bool = False) -> None:
    invocation.output.json(answer.as_json(), one_line=one_line)
    if dot:
        for line in answer.as_dot():
            invocation.output.line(line)
    else:
        invocation.output.tables(*answer.as_text())


def _watch(invocation: Invocation, broker: Broker, target: Target, dot: bool) -> None:
    """Answer again and again, woken by the broker's events.  Ends when the fence that was asked about has signalled."""
    output = invocation.output
    before = None
    with Stream(broker._connection.path) as stream, output.rewriting(enabled=not dot) as rewrite:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLIN)
        while True:
            answer = Answer.find(broker, target)
            if rewrite is not None:
                rewrite(list(answer.as_text()))
            elif answer.shape != before:
                if before is not None:
                    output.line("")
                _write(invocation, answer, dot, one_line=True)
                output.flush()
            before = answer.shape
            if answer.is_final:
                return
            time.sleep(PAUSE)
            poll.poll(REFRESH * 1000)
            for _ in stream.read():  # what happened is seen by looking again
                pass


class Answer:
    """One answer, in each of its forms."""

    def __init__(self, snapshot: Snapshot, starts: Sequence[Key], label: str = "", nothing: str = "", is_final: bool = False) -> None:
        """``label`` is what the one start is called; ``nothing`` is the answer when there is no start."""
        self._is_final = is_final
        self._snapshot = snapshot
        self._graph = walk(snapshot, starts)
        self._label = label
        self._nothing = nothing

    @classmethod
    def find(cls, broker: Broker, target: Target) -> Answer:
        """Look at everything, and follow the ways from ``target``."""
        snapshot = Snapshot.take(broker)
        return cls.about(snapshot, point_at(broker, snapshot, target))

    @classmethod
    def about(cls, snapshot: Snapshot, thing: Holder | Row) -> Answer:
        """Follow the ways from one thing."""
        match thing:
            case Holder():
                snapshot.scan.holders.setdefault(thing.pid, thing)
                return cls(snapshot, [("process", thing.pid)])
            case TimelineRow():
                own = (row for row in snapshot.fences.values() if row.context == thing.context and row.kind == "point" and not row.status)
                starts: list[Key] = [("fence", row.id) for row in sorted(own, key=lambda row: row.seqno)]
                return cls(snapshot, starts, nothing=f"{names.timeline(thing)} has no active point")
            case SyncFileRow():
                row = snapshot.fences.get(thing.fence)
                if row is None or row.status:
                    return cls(snapshot, [], nothing=_signalled(thing.name, row or thing, snapshot.now), is_final=True)
                return cls(snapshot, [("fence", row.id)], thing.name)
            case FenceRow():
                row = snapshot.fences.get(thing.id, thing)
                if row.status or row.id not in snapshot.fences:
                    return cls(snapshot, [], nothing=_signalled(names.point(row), row, snapshot.now), is_final=True)
                return cls(snapshot, [("fence", row.id)])
            case _:
                raise AssertionError(f"no target: {thing}")

    @property
    def is_final(self) -> bool:
        """A fence that has signalled stays so; a process or a timeline may wait for something else next."""
        return self._is_final

    @property
    def shape(self) -> object:
        """What is different in another answer; ages only make the same one older."""
        processes = [
            (key, str(node.holder and node.holder.words)) for key, node in self._graph.nodes.items() if isinstance(node, ProcessNode)
        ]
        return [(key, tuple(node.links)) for key, node in self._graph.nodes.items()], processes, self._is_final

    # -- for a person

    def as_text(self) -> Iterator[Table]:
        """The ways as a tree, then who must act, then the deadlocks."""
        shown: set[Key] = set()
        tree = [line for key in self._graph.starts for line in branches(self._branch(key, shown, 0, self._label))]
        yield Table("", (Column("", shrinks=True),), [[line] for line in tree or [self._nothing]], header=False, folds=True)
        pairs: list[tuple[str, str | Cell | Sequence[str | Cell]]] = []
        for deadlock in self._graph.deadlocks:
            word = "deadlock" if not deadlock.doubt else "maybe a deadlock"
            text = self._circle(deadlock)
            pairs.append((word, Cell(f"{text}; {deadlock.doubt}" if deadlock.doubt else text, "bold red")))
        ends = [line for key in self._graph.ends() for line in self._must(key)]
        if ends:
            pairs.append(("must act", ends))
        if any(isinstance(node, ProcessNode) and node.how == "holds" for node in self._graph.nodes.values()):
            pairs.append(("not seen", "how a process waits that only holds: that takes root, CAP_SYS_PTRACE, or ptrace_scope 0"))
        if pairs:
            yield facts("", pairs)

    def _branch(self, key: Key, shown: set[Key], depth: int, label: str = "") -> Branch:
        node = self._graph.nodes[key]
        match node:
            case FenceNode():
                return self._fence("", key, node, label, shown, depth)
            case Nobody():
                return Branch(node.why)
        who = self._who(node)
        if not node.links:
            idle = ", waits for no fence" if key in self._graph.starts else ""
            return Branch(f"{who} ({_words(node)}{idle})")
        if key in shown or depth >= DEPTH:
            return Branch(f"{who} ({'see above' if key in shown else 'more further down'})")
        shown.add(key)
        if node.is_stopped:
            who += f" ({_words(node)})"
        verb = "holds" if node.how == "holds" else f"waits in {node.how} on"
        if len(node.links) > 1:
            return Branch(f"{who} {verb}", [self._branch(link, shown, depth + 1, node.labels.get(link, "")) for link in node.links])
        (link,) = node.links
        target = self._graph.nodes[link]
        assert isinstance(target, FenceNode)
        return self._fence(f"{who} {verb} ", link, target, node.labels.get(link, ""), shown, depth)

    def _fence(self, before: str, key: Key, node: FenceNode, label: str, shown: set[Key], depth: int) -> Branch:
        """A fence; its owner stands in the same line, or in the next one if he waits himself."""
        line = before + self._called(node.row, label)
        if key in shown and node.row.members:
            return Branch(f"{line} (see above)")
        shown.add(key)
        if depth >= DEPTH:
            return Branch(f"{line}, more further down")
        below = [self._branch(link, shown, depth + 1) for link in node.links]
        if len(below) != 1 or node.row.members:
            return Branch(line, below)
        (owner,) = below
        if owner.more or owner.below or len(self._graph.nodes[node.links[0]].links) > 0:
            return Branch(line, owner.below, [f"<- {owner.line}", *owner.more])
        return Branch(f"{line} <- {owner.line}")

    def _called(self, row: FenceRow, label: str) -> str:
        """A fence: ``frame-7 (camera0@7, 4.2 s)``, or without the sync_file's name where that says nothing new."""
        age = span(self._snapshot.now - row.created_ns)
        point = f"{row.context}:{row.seqno} {row.kind}" if row.members else names.point(row._replace(kind="point"))
        # A placeholder has no seqno of its own yet.
        automatic = f"{row.driver_name}-{row.obj_name}{row.context}-{0 if row.kind == 'placeholder' else row.seqno}"
        says_nothing = label in ("", automatic.encode()[:31].decode(errors="ignore"))
        return f"{point} ({age})" if says_nothing else f"{label} ({point}, {age})"

    @staticmethod
    def _who(node: ProcessNode) -> str:
        return f"{node.who.pid} {node.who.comm}"

    def _must(self, key: Key) -> list[str]:
        node = self._graph.nodes[key]
        if isinstance(node, Nobody):
            return [node.cure]
        assert isinstance(node, ProcessNode)
        wanted = [other.row for other in self._graph.nodes.values() if isinstance(other, FenceNode) and key in other.links]
        line = f"{self._who(node)} ({_words(node)})"
        if wanted:
            line += f": to signal {_listed([names.point(row) for row in wanted])}"
        timeline = self._snapshot.timelines.get(wanted[0].context) if wanted else None
        if timeline is not None:
            name = names.timeline(timeline) if timeline.name else f"{timeline.context}:"
            line += f"; {name} is at {timeline.value}, since {span(self._snapshot.now - timeline.advanced_ns)}"
        return [line, f"kill -CONT {node.who.pid} lets it go on"] if node.is_stopped else [line]

    def _circle(self, deadlock: Deadlock) -> str:
        """One way around: ``812 a waits for b@1 <- 813 b waits for a@1 <- 812 a``."""
        inside = set(deadlock.circle)
        key = next((key for key in deadlock.circle if key in self._graph.starts), deadlock.circle[0])
        if key[0] != "process":
            key = next(key for key in deadlock.circle if key[0] == "process")
        path: list[Key] = []
        while key not in path:
            path.append(key)
            key = next(link for link in self._graph.nodes[key].links if link in inside)
        text = ""
        for step in [*path[path.index(key) :], key]:
            node = self._graph.nodes[step]
            if isinstance(node, ProcessNode):
                text += f"{' <- ' if text else ''}{self._who(node)}"
            elif isinstance(node, FenceNode):
                text += f"{' of which' if text.endswith(')') else ' waits for'} {names.point(node.row)}"
        return text

    # -- for a program

    def as_json(self) -> dict[str, Any]:
        """docs/fencectl.md has the keys."""
        graph, snapshot = self._graph, self._snapshot
        return {
            "now_ns": snapshot.now,
            "starts": [self._name(key) for key in graph.starts],
            "processes": [self._process_json(key, node) for key, node in graph.nodes.items() if isinstance(node, ProcessNode)],
            "fences": [
                {"key": self._name(key), **schema.fence(node.row), "links": self._names(node.links)}
                for key, node in graph.nodes.items()
                if isinstance(node, FenceNode)
            ],
            "nobody": [{"key": self._name(key), "why": node.why} for key, node in graph.nodes.items() if isinstance(node, Nobody)],
            "must_act": self._names(graph.ends()),
            "deadlocks": [
                {"circle": self._names(found.circle), "certain": not found.doubt, "doubt": found.doubt or None} for found in graph.deadlocks
            ],
            "unseen": snapshot.scan.n_unseen,
        }

    def _process_json(self, key: Key, node: ProcessNode) -> dict[str, Any]:
        return {
            "key": self._name(key),
            **schema.seen(node.who, node.holder),
            "how": node.how or None,
            "links": self._names(node.links),
        }

    def _name(self, key: Key) -> str:
        kind, number = key
        if kind != "process":
            row = self._snapshot.fences[number]
            return f"{kind}:{row.context}:{row.seqno}"
        return f"{kind}:{number}"

    def _names(self, keys: Iterable[Key]) -> list[str]:
        return [self._name(key) for key in keys]

    # -- for graphviz

    def as_dot(self) -> Iterator[str]:
        """The graph in the language of graphviz; what is in a deadlock is red."""
        red = {key for deadlock in self._graph.deadlocks for key in deadlock.circle}
        ends = set(self._graph.ends())
        yield "digraph why {"
        yield "  rankdir=LR;"
        for key, node in self._graph.nodes.items():
            match node:
                case ProcessNode():
                    label, shape = f"{self._who(node)}\n{_words(node)}", "box"
                case FenceNode():
                    label, shape = self._called(node.row, "").replace(" (", "\n(", 1), "ellipse"
                case _:
                    label, shape = node.why, "plaintext"
            colour = ", color=red" if key in red else ", style=bold" if key in ends else ""
            yield f"  {_quoted(self._name(key))} [label={_quoted(label)}, shape={shape}{colour}];"
        for key, node in self._graph.nodes.items():
            for link in node.links:
                how = f" [label={_quoted(node.how)}]" if isinstance(node, ProcessNode) else ""
                yield f"  {_quoted(self._name(key))} -> {_quoted(self._name(link))}{how};"
        yield "}"


def _signalled(name: str, row: FenceRow | SyncFileRow, now: int) -> str:
    when = f", {span(now - row.timestamp_ns)} ago" if row.timestamp_ns else ""
    return f"{name} has signalled: {state(row.status)}{when}" if row.status else f"{name} is gone"


def _words(node: ProcessNode) -> str:
    return "not yours to look at" if node.holder is None else node.holder.words


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
