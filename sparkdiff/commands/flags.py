"""Exit codes, and the flags that several commands take."""

from typing import Annotated, Optional

import typer

DONE, FAILED, WRONG_INPUT, NOT_STRICT, INTERRUPTED = 0, 1, 2, 3, 130

Text = Optional[str]  # noqa: UP045 - typer reads it at run time
Model = Annotated[str, typer.Argument(help="Folder of a saved PipelineModel, of a saved stage, or of a run.")]
Names = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads it at run time
    typer.Option(help="Uid, class name or output column of a stage; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

# The flags of all commands that take rows; `finetune` and `grow` take each also as section.key=value.
Data = Annotated[Text, typer.Option(help="Path of the rows.")]
Format = Annotated[str, typer.Option(help="Format of the rows, such as parquet or csv.")]
ReaderOptions = Annotated[
    str, typer.Option(help="Options of Spark's reader as a JSON object; the key schema sets the schema.")
]
Label = Annotated[Text, typer.Option(help="Label column (fineTuner.labelCol).")]
Group = Annotated[Text, typer.Option(help="Group column: rows of a group belong together (fineTuner.groupCol).")]
Time = Annotated[Text, typer.Option(help="Time column: the latest rows are held out (fineTuner.timeCol).")]
Output = Annotated[Text, typer.Option(help="Folder to write (output.path).")]
