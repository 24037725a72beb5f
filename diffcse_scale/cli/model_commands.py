"""Commands about models: evaluate, export, encode, search, and pretrain a generator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from diffcse_scale.cli.schema_options import options_of, with_options_of
from diffcse_scale.encoding.encode_options import EncodeOptions
from diffcse_scale.foundation.errors import either
from diffcse_scale.foundation.working import STARTING, Working
from diffcse_scale.generator.pretrain_options import PretrainOptions
from diffcse_scale.model_folder.layout import check_pooling, model_folder
from diffcse_scale.recipe import DataRecipe, Pooling

commands = typer.Typer()


@commands.command()
def evaluate(
    model: Annotated[
        list[str], typer.Option(help="A run, or a sentence-transformers or transformers folder. Repeatable.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder with sts/ and transfer/, the folder of one suite, a file of graded pairs, or 'hub'."
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="sts, transfer, geometry, edits or mteb:TASK,TASK (default: sts). Repeatable."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the results to this file.")] = None,
    pooling: Annotated[
        str | None, typer.Option(help=f"{either(get_args(Pooling))} (default: the model's own).")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=3, help="Tokens per sentence (default: the model's own).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sentences per batch.")] = 128,
    devices: Annotated[
        str | None, typer.Option(help="Start a process on each of these, such as cuda:0,cuda:1.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --json, whatever it is.")] = False,
) -> None:
    """Evaluate models on similarity, transfer, geometry, edits and MTEB tasks, with confidence intervals."""
    with Working(STARTING):
        from diffcse_scale.evaluation.command import evaluate_models

    evaluate_models(model, data, suite or ("sts",), json, pooling, max_length, batch_size, devices, overwrite)


@commands.command()
def export(
    model: Annotated[Path, typer.Option(help="A run, or a sentence-transformers folder.")],
    output: Annotated[Path, typer.Option(help="Folder to write. Files of an earlier export there are replaced.")],
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale embeddings to length 1.")] = False,
    with_projection: Annotated[
        bool, typer.Option("--with-projection", help="Embeddings are z, with the projection used in training.")
    ] = False,
    whiten: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Whiten the embeddings to half their width, fitted on a sample of this text, which should be like the "
            "text that you will encode. Repeatable.",
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write onnx/model.onnx, in float32.")] = False,
    onnx_int8: Annotated[
        bool, typer.Option("--onnx-int8", help="Also write onnx/model_qint8.onnx, quantized to int8.")
    ] = False,
    max_length: Annotated[
        int | None, typer.Option(min=3, help="Tokens per sentence (default: the model's own).")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Also upload the folder to this Hub repository.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the Hub repository private if it is created.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Also replace files of another model in the folder. Other files are kept."),
    ] = False,
) -> None:
    """Write a model, with its model card, to a folder for sentence-transformers, transformers, ONNX and the Hub."""
    model_folder(model)
    if whiten:
        from diffcse_scale.text.sources import check_names

        check_names(DataRecipe(files=whiten))

    with Working(STARTING):
        from diffcse_scale.export.command import ExportOptions, export_model

    export_model(
        model,
        output,
        ExportOptions(
            normalize, with_projection, whiten or (), onnx, onnx_int8, max_length, push_to_hub, private, overwrite
        ),
    )


@commands.command()
@with_options_of(PretrainOptions)
def pretrain_generator(context: typer.Context, **_: Any) -> None:
    """Train a masked language model on raw text, as generator (and encoder) for your language or domain."""
    from diffcse_scale.text.sources import check_names

    options = options_of(context, PretrainOptions)
    check_names(options.data())

    from diffcse_scale.foundation.output import outlive_readers

    with Working(STARTING):
        from diffcse_scale.generator.pretraining import pretrain_generator

    outlive_readers()
    record = pretrain_generator(options)
    before, after = record["held_out_before"], record["held_out_after"]
    print(f"held-out masked tokens predicted: {before['accuracy']:.1%} before, {after['accuracy']:.1%} after")
    print(f"model: {options.output}")


@commands.command()
@with_options_of(EncodeOptions)
def encode(context: typer.Context, **_: Any) -> None:
    """Encode any amount of text into Parquet or .npy shards. After an interruption the same command continues."""
    from diffcse_scale.text.sources import check_names

    options = options_of(context, EncodeOptions)
    model_folder(options.model)
    check_pooling(options.pooling)
    check_names(DataRecipe(files=options.input, separator=options.separator, header=options.header))

    with Working(STARTING):
        from diffcse_scale.encoding.pipeline import encode
        from diffcse_scale.encoding.prompt import answer

    print(encode(options))
    if options.search:
        answer(options.output, [])


@commands.command()
def search(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that `encode` wrote.")],
    queries: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUERY...", help="Queries (default: read from the terminal or a pipe)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the model that encoded the folder is now, if it has been moved.")
    ] = None,
    index: Annotated[
        str, typer.Option(help="exact, or faiss's hnsw or ivf. The index is kept in the folder.")
    ] = "exact",
    top: Annotated[int, typer.Option(min=1, help="Rows to show per query.")] = 10,
    prompt_name: Annotated[str | None, typer.Option(help="One of the model's prompts, for the queries.")] = None,
) -> None:
    """Search a folder of embeddings for the rows nearest to queries, and show their cosines.

    Compare cosines only with each other: many models give high cosines to unrelated sentences too. Choose a threshold
    on your own data.
    """
    from diffcse_scale.encoding.folder import load
    from diffcse_scale.encoding.search import check_index

    check_index(index)
    load(folder)

    with Working(STARTING):
        from diffcse_scale.encoding.prompt import answer

    answer(folder, queries or [], model, index, top, prompt_name)
