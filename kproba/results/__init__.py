"""Results: evaluation of steps, tables, figures and the page that shows them.

`evaluation` evaluates a step and writes evaluation.json and confusion.csv. `measures`
lists what is measured, and `tables` collects all steps in summary.csv.

`figures` draws PNG files for papers, and `tensorboard` shows curves. `page` writes the
page from the templates in templates/. Its parts: `verdict` makes the message from the
numbers, `facts` reads what was run, `page_tables`, `page_classes` and `published` make
tables, `charts`, `svg` and `training_curves` charts, and `page_pictures` pictures.
`palette` has the colours of all of them.

`comparison` compares methods seed by seed, and `choice` chooses among them. `documents`
writes the tables of results in the documents from docs/measured/.
"""
