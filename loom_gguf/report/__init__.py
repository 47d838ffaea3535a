"""What all reports share: files, numbers, labels, figures, terminal tables and the skeleton of an HTML page.

Nothing in here knows what is reported: analyses, lenses, comparisons and others bring rows, figures and pieces of HTML.
"""
