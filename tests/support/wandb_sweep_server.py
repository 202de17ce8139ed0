"""The stand-in W&B server with sweeps: what the real `wandb sweep` and `wandb agent` ask for.

Grid goes through the product of the values in the order of the file; random and bayes draw (bayes beside the best run
so far, which is enough to tell whether it looks at results). Hyperband ends a run by W&B's rule, both ways: the agent
gets `stop`, and the run's own stream says `stopped`.
"""

import itertools
import json
import math
import random
from dataclasses import dataclass, field
from typing import Any

import yaml
from wandb_server import ENTITY, Run, WandbServer


@dataclass
class Sweep:
    """A sweep: its file, its runs in the order in which they were given out, and what agents were told."""

    id: str
    project: str
    config: dict[str, Any]
    runs: list[str] = field(default_factory=list)
    given: dict[str, dict[str, Any]] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)
    preempted: list[str] = field(default_factory=list)
    state: str = "RUNNING"

    @property
    def metric(self) -> str:
        return self.config["metric"]["name"]

    @property
    def sign(self) -> int:
        """1 where less is better."""
        return 1 if self.config["metric"].get("goal", "minimize") == "minimize" else -1


@dataclass
class Agent:
    """An agent, and the run that it was given last."""

    id: str
    sweep: str
    run: str | None = None
    told: list[str] = field(default_factory=list)


class WandbSweepServer(WandbServer):
    """`sweeps` and `agents` by id; `states()` of the runs as W&B shows them."""

    def __init__(self) -> None:
        super().__init__()
        self.sweeps: dict[str, Sweep] = {}
        self.agents: dict[str, Agent] = {}
        self.random = random.Random(0)
        # Runs that a person stops: the agents are told nothing, the run's own stream is.
        self.stop_by_stream: set[str] = set()

    def states(self) -> dict[str, str]:
        """finished, failed, preempted or running, by run."""
        return {run.id: self.state_of(run) for run in self.runs.values()}

    def state_of(self, run: Run) -> str:
        if not run.complete:
            return "running"
        if run.exit_code == 0:
            return "finished"
        return "preempted" if run.id in self.preempting else "failed"

    @property
    def preempting(self) -> set[str]:
        return {run.id for run in self.runs.values() if run.fields.get("preempting")}

    # ------------------------------------------------------------------ what the programs ask

    def upsert_sweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        if variables.get("entityName") not in (None, ENTITY):
            raise LookupError(f"entity {variables['entityName']} not found")
        config = yaml.safe_load(variables["config"])
        sweep = Sweep(f"sweep{len(self.sweeps) + 1}", variables["projectName"], config)
        self.sweeps[sweep.id] = sweep
        project = {"id": "project-1", "name": sweep.project, "entity": {"id": "entity-1", "name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": sweep.id, "project": project}, "configValidationWarnings": []}}

    def get_sweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps.get(variables.get("sweep") or variables.get("name") or "")
        if sweep is None:
            return {"project": {"sweep": None}}
        described = {"id": sweep.id, "name": sweep.id, "displayName": sweep.id, "method": sweep.config["method"]}
        described |= {"state": sweep.state, "description": None, "config": yaml.safe_dump(sweep.config)}
        described |= {"bestLoss": None, "controller": None, "scheduler": None, "runs": {"edges": []}}
        described |= {"runCount": len(sweep.runs), "runCountExpected": None, "priorRuns": {"edges": []}}
        return {"project": {"sweep": described}}

    def create_agent(self, variables: dict[str, Any]) -> dict[str, Any]:
        agent = Agent(f"agent{len(self.agents) + 1}", variables["sweep"])
        self.agents[agent.id] = agent
        return {"createAgent": {"agent": {"id": agent.id}}}

    def run_stopped(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"run": {"stopped": self.is_stopped(variables["run"])}}}

    def heartbeat(self, variables: dict[str, Any]) -> dict[str, Any]:
        agent = self.agents[variables["id"]]
        alive = json.loads(variables["runState"])
        sweep = self.sweeps[agent.sweep]
        self.judge(sweep)
        commands: list[dict[str, Any]] = [{"type": "stop", "run_id": run} for run in alive if run in sweep.stopped]
        if not alive:
            commands.append(self.next_command(sweep))
        agent.told += [command["type"] for command in commands]
        return {"agentHeartbeat": {"agent": {"id": agent.id}, "commands": json.dumps(commands)}}

    OPERATIONS = WandbServer.OPERATIONS | {
        "UpsertSweep": "upsert_sweep",
        "SweepWithRuns": "get_sweep",
        "GetSweep": "get_sweep",
        "GetSweepLegacy": "get_sweep",
        "CreateAgent": "create_agent",
        "Heartbeat": "heartbeat",
        "RunStoppedStatus": "run_stopped",
    }

    def stream(self, run_id: str, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("preempting"):
            self.runs[run_id].fields["preempting"] = True
        reply = super().stream(run_id, body)
        return reply | ({"stopped": True} if self.is_stopped(run_id) else {})

    def is_stopped(self, run_id: str) -> bool:
        return run_id in self.stop_by_stream or any(run_id in sweep.stopped for sweep in self.sweeps.values())

    # ------------------------------------------------------------------ the search

    def next_command(self, sweep: Sweep) -> dict[str, Any]:
        """What an agent without a run is to do: go on with a preempted run, start a new one, or exit."""
        for run_id in sweep.runs:
            run = self.runs[run_id]
            if self.state_of(run) == "preempted" and run_id not in sweep.preempted:
                sweep.preempted.append(run_id)
                run.complete, run.exit_code = False, None
                # As the real server does: not the parameters, the whole config.
                return self.command("resume", sweep, run_id, run.config)
        values = self.next_values(sweep)
        if values is None or sweep.state != "RUNNING":
            return {"type": "exit"}
        run_id = f"{sweep.id}run{len(sweep.runs) + 1}"
        sweep.runs.append(run_id)
        sweep.given[run_id] = values
        self.runs[run_id] = Run(id=run_id, project=sweep.project, config=dict(values), fields={"sweep": sweep.id})
        return self.command("run", sweep, run_id, values)

    def command(self, kind: str, sweep: Sweep, run_id: str, values: dict[str, Any]) -> dict[str, Any]:
        args = {name: {"value": value} for name, value in values.items()}
        return {"type": kind, "run_id": run_id, "program": sweep.config.get("program"), "args": args}

    def next_values(self, sweep: Sweep) -> dict[str, Any] | None:
        if len(sweep.runs) >= sweep.config.get("run_cap", math.inf):
            return None
        parameters = sweep.config["parameters"]
        if sweep.config["method"] == "grid":
            lists = [settings.get("values", [settings.get("value")]) for settings in parameters.values()]
            points = [dict(zip(parameters, point, strict=True)) for point in itertools.product(*lists)]
            return points[len(sweep.runs)] if len(sweep.runs) < len(points) else None
        best = self.best(sweep) if sweep.config["method"] == "bayes" else None
        return {name: self.draw(settings, best and best[name]) for name, settings in parameters.items()}

    def best(self, sweep: Sweep) -> dict[str, Any] | None:
        """The values of the finished run with the best metric, once there are two."""
        done = [
            run_id
            for run_id in sweep.runs
            if self.state_of(self.runs[run_id]) == "finished" and sweep.metric in self.runs[run_id].summary
        ]
        key = {run_id: sweep.sign * self.runs[run_id].summary[sweep.metric] for run_id in done}
        return sweep.given[min(done, key=lambda run_id: key[run_id])] if len(done) >= 2 else None

    def draw(self, settings: dict[str, Any], near: Any) -> Any:
        if "value" in settings:
            return settings["value"]
        if "values" in settings:
            return near if near is not None else self.random.choice(settings["values"])
        low, high = settings["min"], settings["max"]
        if settings["distribution"] == "int_uniform":
            return self.random.randint(low, high) if near is None else near
        logs = settings["distribution"].startswith("log")
        low, high = (math.log(low), math.log(high)) if logs else (low, high)
        if near is not None:
            middle, width = (math.log(near) if logs else near), (high - low) / 20
            low, high = max(low, middle - width), min(high, middle + width)
        drawn = self.random.uniform(low, high)
        return math.exp(drawn) if logs else drawn

    def judge(self, sweep: Sweep) -> None:
        """Hyperband by W&B's rule: at a band, a run goes on only if it is in the best 1/eta of those that came so far.

        Values are those at the band itself, in rows that have the metric; the first run to come there goes on.
        """
        rule = sweep.config.get("early_terminate")
        if not rule:
            return
        eta, bands = rule.get("eta", 3), []
        band = float(rule["min_iter"])
        while band < 1000:
            bands.append(int(band))
            band *= eta
        for count in bands:
            reached = {
                run_id: rows[count - 1] for run_id in sweep.runs if len(rows := self.rows(sweep, run_id)) >= count
            }
            ranked = sorted(reached.values())
            keep = ranked[max(1, math.ceil(len(ranked) / eta)) - 1] if ranked else 0.0
            for run_id, value in reached.items():
                if value > keep and not self.runs[run_id].complete:
                    sweep.stopped.add(run_id)

    def rows(self, sweep: Sweep, run_id: str) -> list[float]:
        """The metric's values of a run, signed so that less is better."""
        history = self.runs[run_id].history
        return [sweep.sign * row[sweep.metric] for row in history if sweep.metric in row]
