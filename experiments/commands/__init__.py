"""The commands of `python -m experiments`, one module each, imported only when it is called."""

PROGRAM = "python -m experiments"

COMMANDS = {
    "list": "every result: id, figure or table, presets, minutes, last verdicts",
    "run": "run a result, every result of a paper, or a result file of your own",
    "show": "claims, tables and figures of one run",
    "compare": "two runs side by side: claims, config differences, paired seeds",
    "report": "REPORT.md and REPORT.html: every claim, its verdict, the figures",
    "plan": "memory, operations and the least time of a training on TPUs that are not there",
    "bench": "what the training loop and the scans cost beside what they are compared with",
    "generate": "text from a trained language model, as it is made",
    "export": "a trained language model as safetensors and config.json",
    "data": "text as rows of tokens in shards on disk or in a bucket; verify and measure them",
    "doctor": "versions, devices, optional parts, what is writable",
}
