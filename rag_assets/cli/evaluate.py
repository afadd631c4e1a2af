"""The command that evaluates the retrieval of a shard with its golden questions."""

import click

from rag_assets.cli.output import user_name
from rag_assets.settings import PipelineSettings
from rag_serving.cli.errors import NamedClickError
from rag_serving.lake.shards import Shard


@click.command(short_help="Ask a shard its golden questions.")
@click.argument("shard", metavar="REGION/DEPARTMENT")
def evaluate(shard: str) -> None:
    """Ask a shard its golden questions and print the scores.

    Use it after editing the questions in region/department/_eval/*.jsonl: it lists those that are not answered and the
    lines that are invalid. The newest version of the shard is measured, and compared with the published version if that
    is another one. Publishes nothing; fails if the newest version would not be published.

    Example: rag-assets evaluate london/people
    """
    from rag_assets.evaluation.evaluate import assess
    from rag_assets.pipeline import Pipeline

    pipeline = Pipeline(PipelineSettings.from_env())
    run_id = f"evaluate by {user_name()}"
    found = assess(
        pipeline.lake(), Shard.parse(shard), pipeline.identity(), pipeline.quality(), run_id=run_id, again=True
    )
    measured = found.evaluation
    if measured is None:
        raise NamedClickError(f"{shard} was not evaluated: {found.reason}; run rag-assets backfill first")
    compared = "" if measured.compared_with is None else f", compared with published version {measured.compared_with}"
    click.echo(f"version {measured.version}{compared}: {measured.questions} golden questions")
    head, published = measured.head, measured.published
    if head is not None:
        click.echo(f"{'':<18}{'hit@1':>8}{'hit@10':>8}{'MRR@10':>8}{'nDCG@10':>9}")
    for name, scores in (
        ("hybrid search", head and head.hybrid),
        ("vector search", head and head.vector),
        ("text search", head and head.text),
        ("published, hybrid", published and published.hybrid),
    ):
        if scores is not None:
            click.echo(
                f"{name:<18}{scores.hit_at_1:>8.3f}{scores.hit_at_10:>8.3f}{scores.mrr_at_10:>8.3f}"
                f"{scores.ndcg_at_10:>9.3f}"
            )
    if measured.index_recall is not None:
        click.echo(f"recall of the vector index: {measured.index_recall:.3f}")
    for question in found.missed:
        click.echo(f"not answered: {question}")
    for key in found.gone:
        click.echo(f"skipped, its document is not in the source: {key}")
    for line in found.golden.invalid:
        click.echo(f"invalid: {line.file}:{line.line}: {line.problem}")
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    if found.problems:
        raise NamedClickError(f"this version would not be published: {'; '.join(found.problems)}")
