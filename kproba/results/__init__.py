"""Results: tests of steps, tables, figures and the page that shows them.

`evaluation` tests a step and writes evaluation.json and confusion.csv. `measures` lists
what is measured. `tables` collects all steps in summary.csv, and `figures` and `page`
(with `page_tables`, `page_pictures`) draw from there. `tensorboard` shows curves.
"""
