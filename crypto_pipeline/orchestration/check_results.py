"""Reporting asset check results partition by partition, in a range run as in a single one.

A Dagster ``AssetCheckResult`` returned in a range run is recorded once, without a partition, and the
rows planned for the run's partitions stay planned for ever. So the checks here yield one
``AssetCheckEvaluation`` a partition, each pointing at the materialization it judged (without that
pointer the UI holds the result for outdated). ``test_upstream_pins.py`` pins both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

# Not exported by dagster, and the only way to say which materialization a result is about.
from dagster._core.definitions.asset_checks.asset_check_evaluation import (  # noqa: TID251
    AssetCheckEvaluationTargetMaterializationData,
)

from crypto_pipeline.orchestration.event_storage import EventLogStorage, NewestMaterialization
from crypto_pipeline.orchestration.failures import told_to_dagster
from crypto_pipeline.orchestration.parallel import in_threads
from crypto_pipeline.orchestration.partitions import Partition, partitions_of


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One check's result for one partition."""

    passed: bool
    description: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR


#: Judges one partition: a verdict for each check by its name.
Judge = Callable[[Partition], Mapping[str, Verdict]]

#: Opens what one thread needs to judge partitions.
JudgeOpener = Callable[[], AbstractContextManager[Judge]]


def evaluations(
    context: dg.AssetCheckExecutionContext,
    specs: Sequence[dg.AssetCheckSpec],
    opened: JudgeOpener,
    *,
    known: Mapping[Partition, Mapping[str, Verdict]],
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """Judge every partition of the run but those whose verdicts are known; all specs are of one asset.

    Descriptions are Markdown to the UI: what comes from outside goes into metadata, or through
    :func:`~crypto_pipeline.plaintext.in_markdown`.
    """
    with told_to_dagster():
        yield from _evaluated(context, specs, opened, known)


def _evaluated(
    context: dg.AssetCheckExecutionContext,
    specs: Sequence[dg.AssetCheckSpec],
    opened: JudgeOpener,
    known: Mapping[Partition, Mapping[str, Verdict]],
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    op = context.op_execution_context
    selected = [spec for spec in specs if spec.key in context.selected_asset_check_keys]
    partitions = partitions_of(op.partition_keys)
    judged = _judged_materializations(context.instance, specs[0].asset_key, partitions)
    for partition, verdicts in in_threads(partitions, opened, known=known):
        for spec in selected:
            verdict = verdicts[spec.name]
            yield dg.AssetCheckEvaluation(
                asset_key=spec.asset_key,
                check_name=spec.name,
                passed=verdict.passed,
                description=verdict.description,
                metadata=dict(verdict.metadata),
                severity=verdict.severity,
                blocking=spec.blocking,
                partition=partition.key,
                target_materialization_data=judged.get(partition.key),
            )
    for spec in selected:
        yield dg.Output(None, output_name=spec.get_python_identifier())


def _judged_materializations(
    instance: dg.DagsterInstance, asset: dg.AssetKey, partitions: Sequence[Partition]
) -> dict[str, AssetCheckEvaluationTargetMaterializationData]:
    """The newest materialization of each partition."""
    keys = sorted({partition.key for partition in partitions})
    storage = instance.event_log_storage
    if isinstance(storage, EventLogStorage):
        found = storage.newest_materializations(asset, keys)
    else:
        found = _newest_materializations(instance, asset, keys)
    return {
        key: AssetCheckEvaluationTargetMaterializationData(
            storage_id=storage_id, run_id=run_id, timestamp=timestamp
        )
        for key, (storage_id, run_id, timestamp) in found.items()
    }


def _newest_materializations(
    instance: dg.DagsterInstance, asset: dg.AssetKey, keys: Sequence[str]
) -> dict[str, NewestMaterialization]:
    """As our storage says it, from any other."""
    missing = set(keys)
    found: dict[str, NewestMaterialization] = {}
    cursor: str | None = None
    while missing:
        page = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=asset, asset_partitions=sorted(missing)),
            limit=max(100, len(missing)),
            cursor=cursor,
        )
        for record in page.records:
            key = record.partition_key
            if key in missing:
                missing.discard(key)
                found[str(key)] = NewestMaterialization(
                    record.storage_id, record.run_id, record.timestamp
                )
        if not page.has_more:
            break
        cursor = page.cursor
    return found
