-- The cache pads ids with zeros so that their bytes sort as their numbers do, which holds for positive ones.
-- step
ALTER TABLE users ADD CONSTRAINT users_user_id_positive CHECK (user_id > 0) NOT VALID;
-- step
ALTER TABLE users VALIDATE CONSTRAINT users_user_id_positive;
