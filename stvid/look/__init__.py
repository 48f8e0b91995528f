"""Numbers to pictures: reports, explanations, contact sheets, timelines, the demo page."""
