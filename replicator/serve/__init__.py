"""One process that schedules, shows and answers: scheduler, REST API, dashboard, metrics. State is in the target."""
