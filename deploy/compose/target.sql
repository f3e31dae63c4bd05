-- First start of the target: the role that writes it. WRITER_PASSWORD comes from the environment.

\i /sql/roles.sql
\getenv writer_password WRITER_PASSWORD
alter role :"writer" password :'writer_password';
